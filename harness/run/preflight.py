"""What is checked before anything runs: models are there, tokenizers fit, data reads, lengths have room."""

from __future__ import annotations

from rich.markup import escape

from harness.base.errors import HarnessError
from harness.base.progress import Progress
from harness.base.ranks import world_size
from harness.data.tokens import STUDENT
from harness.generation import vllm as vllm_engine
from harness.generation.answers import check_room
from harness.models.heads import check_packing
from harness.plan.stages import Plan, with_inputs
from harness.run.workbench import PublishedModels, Workbench, model_records
from harness.tasks import tasks
from harness.training.rollout_share import follows_acceptance
from methods.base import Need, Rows
from methods.library.vocabulary import TokenKind


def preflight(plan: Plan, bench: Workbench, progress: Progress, unsafe: bool) -> None:
    """Check all that a plan's stages will need.

    Args:
        unsafe: whether generated code may run without a sandbox.

    Raises:
        HarnessError: on the first thing that is wrong.
    """
    if plan.recipe.evaluation.engine == "vllm" and not plan.recipe.stages:
        vllm_engine.check_installed()
    _tell_of_models(bench.published, progress)
    _check_vocabularies(plan, bench, progress)
    _check_batches(plan)
    _check_shards(plan, progress)
    _check_methods(plan, bench)
    _check_rewards(plan)
    _check_rows(plan, bench.published)
    _check_packing(plan, bench.published)
    for name, task in plan.tasks.items():
        _check_lengths(plan, bench, name)
        _check_rollouts(plan, bench, name)
        for warning in task.warnings(unsafe):
            progress.message(f"[yellow]{name}[/]: {escape(warning)}")


def _tell_of_models(published: PublishedModels, progress: Progress) -> None:
    """Which have no commit in the recipe, and what their publishers ask for that no answer here follows."""
    for role, record in model_records(published).items():
        if "commit" in record and record["commit"] not in record["uri"]:
            progress.message(
                f"[yellow]{role}: {escape(record['uri'])} names no commit[/]; this machine has {record['commit']}. "
                f"Write @{record['commit']} into the recipe, so that it stays the same model."
            )
        if "set_aside" in record:
            progress.message(
                f"{role}: its generation_config.json asks for {escape(record['set_aside'])}; set aside: a task's "
                "protocol says how answers are decoded"
            )


def _check_vocabularies(plan: Plan, bench: Workbench, progress: Progress) -> None:
    """Each model has an embedding for all that its texts can hold, and a cross teacher a tokenizer of its own.

    Names of control tokens are text to us, so those beyond the embedding do no harm (Gemma 3's for images).
    """
    published = bench.published
    for role in published.specs:
        side, rows = published.sides[role], published.vocabulary_size(role)
        beyond = [rows + int(place) for place in (side.vocabulary.kinds[rows:] < TokenKind.SPECIAL).nonzero()[0]]
        beyond += [token for token in (*side.bos, *side.eos_ids) if token >= rows]
        if beyond:
            raise HarnessError(
                f"model of {side.name}",
                f"an embedding of {rows} rows, and {len(beyond)} tokens of its tokenizer beyond it: {beyond[0]}, ...",
                "an embedding for every token",
                "Its tokenizer is another model's, or tokens were added to it and not to the model.",
            )
    roles = {part.role for cell in plan.cells for part in cell.objective.taught}
    if "cross" in roles and bench.pairs.of("cross").same_tokenizer:
        progress.message(
            "[yellow]teachers.cross has the student's own tokenizer[/]: methods for two tokenizers run, but what they "
            "learn here says nothing of pairs that cut text differently. teachers.same may be what you mean."
        )


def _check_batches(plan: Plan) -> None:
    """The processes must be able to share every stage's batches."""
    asked = (stage for end in plan.ends for stage in with_inputs(end))
    for section, training in {stage.section: stage.training for stage in asked if stage.training is not None}.items():
        try:
            training.micro_batch(world_size())
        except ValueError as error:
            raise HarnessError(f"{section}.batch_size", *error.args) from error


def _check_rewards(plan: Plan) -> None:
    """Tasks must say rewards to methods that learn by them, and responses to one prompt be drawn together."""
    for cell in plan.cells:
        for method in (method for method in cell.objective.methods if Need.REWARDS in method.needs):
            row, several = cell.objective.label, method.samples_a_prompt
            if not plan.tasks[cell.task].rewards:
                telling = ", ".join(name for name, task in tasks().items() if task.rewards)
                raise HarnessError(
                    f"methods: {row}",
                    f"task {cell.task}, which can't say what a response is worth",
                    f"tasks that can: {telling}",
                    "Leave the method or the task out.",
                )
            assert cell.student.training is not None
            together = cell.student.training.micro_batch(world_size(), sampled=True)
            if together % several:
                found = f"{together} responses that are sampled together"
                expected = f"a multiple of {several}, which {row} samples to each prompt"
                fix = f"Set them, or group_size of {row}."
                raise HarnessError("train.batch_size, train.micro_batch_size", found, expected, fix)


def _check_shards(plan: Plan, progress: Progress) -> None:
    """What trains in pieces must have processes to share with, and ask for the pieces at the same moments."""
    asked = (stage for end in plan.ends for stage in with_inputs(end))
    sharded = [stage for stage in asked if stage.training is not None and stage.training.shard]
    if sharded and world_size() == 1:
        sections = ", ".join(f"{section}.shard" for section in dict.fromkeys(stage.section for stage in sharded))
        progress.message(
            f"[yellow]{sections}[/]: one process has nobody to share weights with; torchrun --nproc-per-node N starts "
            "several"
        )
        return
    for stage in sharded:
        sampling = [method.name for method in stage.objective.methods if method.sampling] if stage.objective else []
        if sampling:
            raise HarnessError(
                f"{stage.section}.shard",
                f"true, with {', '.join(sampling)}, whose student samples responses: each process its own number of "
                "tokens, and none gathers weights alone",
                "whole students where responses are sampled",
                f"Set {stage.section}.shard to false, or leave the method out.",
            )


def _check_methods(plan: Plan, bench: Workbench) -> None:
    """Every method must be able to use its teacher's tokenizer."""
    for objective in {id(cell.objective): cell.objective for cell in plan.cells}.values():
        for part in objective.taught:
            if (reason := part.method.refuses(bench.pairs.of(part.role))) is not None:
                raise HarnessError(
                    f"teachers.{part.role}",
                    reason,
                    "a teacher that the method can use",
                    "Name another, or leave it out.",
                )


def _check_rows(plan: Plan, published: PublishedModels) -> None:
    """What is kept of a position must be what methods read, and no more tokens of it than the teacher has."""
    kept = plan.recipe.teacher_rows
    if kept.keep != "top_k":
        return
    reading = {method.name for cell in plan.cells for method in cell.objective.methods if Need.HIDDEN in method.needs}
    if reading:
        raise HarnessError("teacher_rows.keep", "top_k", f"hidden, which {', '.join(sorted(reading))} reads")
    for role in sorted({stage.role for stage in plan.stages() if stage.kind == "rows"}):
        tokens = published.vocabulary_size(role)
        if kept.k > tokens:
            raise HarnessError(
                "teacher_rows.k", str(kept.k), f"at most {tokens}, the tokens of {published.sides[role].name}"
            )


def _check_packing(plan: Plan, published: PublishedModels) -> None:
    """Models that are to be trained on packed sequences must keep them apart."""
    asked = (stage for end in plan.ends for stage in with_inputs(end))
    packed = {stage.role or STUDENT for stage in asked if stage.training is not None and stage.training.packing}
    for role in sorted(packed):
        check_packing(published.model(role))


def _check_lengths(plan: Plan, bench: Workbench, task: str) -> None:
    """Every model of the pair must be able to read the task's rows, and what is evaluated its test prompts."""
    recipe, published = plan.recipe, bench.published
    examples, length = bench.texts.examples(task, "train"), str(recipe.limits.length)
    if not examples and (rows := bench.texts.counts(task, "train"))["unreadable"] == rows["read"] > 0:
        found = f"drop, which leaves out all {rows['read']:,} training rows of {task}"
        raise HarnessError("limits.unreadable", found, "tokenizers that keep text as it is", "Take another model.")
    if not examples:
        raise HarnessError("limits.length", length, f"room for a prompt of {task} and its response", "Raise it.")
    if recipe.evaluation.bits_per_byte:
        examples = examples + bench.texts.examples(task, "test")
    for role in published.specs:
        room = _room(published, role)
        if room is not None and max(example.sides[role].length for example in examples) > room:
            expected = f"at most {room}, which is what {published.sides[role].name} reads"
            raise HarnessError("limits.length", length, expected, f"Rows of {task} are longer: lower it.")
        if role == STUDENT or role in {reference.teacher for reference in plan.references}:
            new_tokens = plan.tasks[task].settings.new_tokens
            check_room(published.config(role), published.sides[role], bench.prompts.of(task), new_tokens)


def _check_rollouts(plan: Plan, bench: Workbench, task: str) -> None:
    """The student must be able to read the longest prompt and what it may sample after it."""
    methods = [method for cell in plan.cells for method in cell.objective.methods]
    for method in methods:
        if follows_acceptance(method) and method.rows is not Rows.PREDICTING:
            expected = "rows that predict the tokens they are compared at, or a share that is given"
            raise HarnessError(f"rollout_share of {method.name}", "target: acceptance", expected)
    sampling = [method.sampling for method in methods]
    asked = [options.rollout_tokens for options in sampling if options is not None]
    if not asked:
        return
    room = _room(bench.published, STUDENT)
    longest = max(example.sides[STUDENT].prompt.size for example in bench.texts.examples(task, "train"))
    if room is not None and longest + max(asked) > room:
        raise HarnessError(
            "rollout_tokens",
            f"{max(asked)}, after a prompt of {task} with {longest} tokens",
            f"at most {room} together, which is what {bench.published.sides[STUDENT].name} reads",
        )


def _room(published: PublishedModels, role: str) -> int | None:
    """The most tokens that a model reads; None where its config does not say."""
    room: int | None = getattr(published.config(role).get_text_config(), "max_position_embeddings", None)
    return room
