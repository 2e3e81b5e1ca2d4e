"""`python -m gpu_server.mesh.worker`: one order from standard input, its answer to standard output.

numpy is imported only after memory has been limited and its threads, which reserve much, are off.
"""

import os
import sys
import traceback

from pydantic import BaseModel, ConfigDict

from gpu_server.mesh.errors import MeshCode, MeshError
from gpu_server.mesh.order import MeshLimits, MeshOrder, MeshReport
from gpu_server.workers import confine, end_with_parent


class Task(BaseModel):
    """What the process is given, as one line of JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: MeshOrder
    limits: MeshLimits


class Answer(BaseModel):
    """What it says before it ends: a report, or what was wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    report: MeshReport | None = None
    code: MeshCode | None = None
    message: str = ""


def main() -> None:
    """Carry out one order."""
    task = Task.model_validate_json(sys.stdin.buffer.readline())
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    confine(memory_bytes=task.limits.memory_bytes)
    end_with_parent()
    sys.stdout.write(_answer(task).model_dump_json())
    sys.stdout.flush()


def _answer(task: Task) -> Answer:
    try:
        from gpu_server.mesh.work import carry_out  # noqa: PLC0415  # imports numpy, see above

        return Answer(report=carry_out(task.order, task.limits))
    except MeshError as error:
        return Answer(code=error.code, message=error.message)
    except MemoryError:
        return Answer(code="mesh_too_large", message="The model needs more memory than allowed.")
    except (OSError, ImportError):
        # a full disk or a broken installation is no fault of the model: the process dies of it
        raise
    except Exception:  # noqa: BLE001  # what no check foresaw in a stranger's file
        traceback.print_exc()
        return Answer(code="mesh_invalid", message="The model is broken: repair and export it.")


if __name__ == "__main__":
    main()
