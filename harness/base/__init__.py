"""What everybody may use: errors, files, identities, devices, processes."""
