"""Running one prompt: nodes in order, with ComfyUI's events, cache and ways to fail."""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from gpu_server.simulator import sockets
from gpu_server.simulator.folders import Folders
from gpu_server.simulator.graph import Graph, RunOrder, Signatures, is_link
from gpu_server.simulator.nodes import NODE_CLASSES, NodeClass, Shown
from gpu_server.simulator.prompt_queue import Item, Verdict
from gpu_server.simulator.settings import Failure, Knobs
from gpu_server.simulator.validation import exception_name

OUT_OF_MEMORY = Failure(
    exception_type="torch.OutOfMemoryError",
    message="Allocation on device 0 would exceed allowed memory. (out of memory)",
)
_BLOCKED = "ExecutionBlocked"


class InterruptedRun(Exception):
    """Somebody asked to stop this prompt."""


class WorkerDied(BaseException):
    """The worker thread ends here, silently and for good; only a restart helps."""


class SimulatedFailure(Exception):
    """A knob makes this node fail."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.exception_type = failure.exception_type


@dataclass(frozen=True, slots=True)
class Blocked:
    """Stands for a value that a node refused to make; nodes that would take it do not run."""


@dataclass(frozen=True, slots=True)
class NodeResult:
    """What the cache keeps of a node: a list of values for each output, and what it showed."""

    values: list[list[Any]]
    ui: dict[str, list[Any]] | None
    meta: dict[str, Any]


Cache = dict[str, NodeResult]


@dataclass(frozen=True, slots=True)
class Stage:
    """What a run needs from the server around it."""

    folders: Folders
    knobs: Knobs
    send: Callable[[str, Any, Any], None]
    """event, data, client id (None: everybody)"""
    supports: Callable[[Any, str], bool]
    at_node: Callable[[tuple[Any, str] | None], None]
    """Told the client and node that execute now."""
    interrupted: Callable[[], bool]
    """Whether an interrupt was asked; asking clears it."""


class PromptRun:
    """One execution of one prompt."""

    def __init__(self, item: Item, cache: Cache, stage: Stage) -> None:
        _, self.prompt_id, self.graph, extra_data, self._outputs = item
        # `in` on extra_data null raises TypeError, which kills ComfyUI's worker, and this one.
        self.client_id: Any = extra_data["client_id"] if "client_id" in extra_data else None  # noqa: SIM401
        self.extra_pnginfo: Mapping[str, Any] = extra_data.get("extra_pnginfo") or {}
        self.stage = stage
        self._cache = cache
        self._keys: dict[str, str] = {}
        self._messages: list[tuple[str, dict[str, Any]]] = []
        self._progress: dict[str, dict[str, Any]] = {}
        self._executed: list[str] = []

    def execute(self) -> Verdict:
        """Run the prompt to its end; raises `WorkerDied` or whatever a poison raises."""
        self._message("execution_start")
        self._wedge_if("start")
        signatures = Signatures(self.graph, self.stage.folders)
        self._keys = {node_id: signatures.of(node_id) for node_id in self.graph}
        # The classic cache keeps what this prompt can use and nothing else.
        for stale in set(self._cache).difference(self._keys.values()):
            del self._cache[stale]
        cached = [node_id for node_id, key in self._keys.items() if key in self._cache]
        self._message("execution_cached", nodes=cached)
        success = self._run_nodes()
        if success:
            self._message("execution_success")
        self.stage.at_node(None)
        shown = {
            node_id: self._cache[key]
            for node_id, key in self._keys.items()
            if key in self._cache and self._cache[key].ui is not None
        }
        return Verdict(
            success=success,
            messages=self._messages,
            outputs={node_id: result.ui for node_id, result in shown.items()},
            meta={node_id: result.meta for node_id, result in shown.items()},
        )

    def _run_nodes(self) -> bool:
        order = RunOrder(
            self.graph, self._outputs, lambda node_id: self._cached(node_id) is not None
        )
        while order:
            node_id = order.next()
            try:
                self._run_node(node_id)
            except InterruptedRun:
                self._message("execution_interrupted", everybody=True, **self._where(node_id))
                return False
            except Exception as error:  # noqa: BLE001 - any failure of a node ends the run
                self._fail(node_id, error)
                return False
            order.done(node_id)
        return True

    def _cached(self, node_id: str) -> NodeResult | None:
        # A linked node that is not in the prompt has no key.
        return self._cache.get(self._keys.get(node_id, ""))

    def _run_node(self, node_id: str) -> None:
        cached = self._cached(node_id)
        if cached is not None:
            self._send("executed", **self._names(node_id), output=cached.ui)
            self._report(node_id, state="finished")
            return
        self._report(node_id, state="running", value=0.0, max=1.0)
        if self.client_id is not None:
            self.stage.at_node((self.client_id, node_id))
        self._send("executing", **self._names(node_id))
        self._wedge_if("running")
        self.check_interrupt()
        result = NodeCall(self, node_id).result()
        self._cache[self._keys[node_id]] = result
        if result.ui is not None:
            self._send("executed", **self._names(node_id), output=result.ui)
        self._report(node_id, state="finished")
        self._executed.append(node_id)

    def _wedge_if(self, when: str) -> None:
        if self.stage.knobs.current.wedge == when:
            self.stage.knobs.update({"wedge": None})
            raise WorkerDied

    def check_interrupt(self) -> None:
        """Stop here when somebody asked to."""
        if self.stage.interrupted():
            raise InterruptedRun

    def progress(self, node_id: str, value: int, total: int) -> None:
        """Report a step of a node, and stop here when somebody asked to."""
        self.check_interrupt()
        self._report(node_id, state="running", value=value, max=total)
        data = {"value": value, "max": total, "prompt_id": self.prompt_id, "node": node_id}
        self.stage.send("progress", data, self.client_id)

    def linked(self, link: list[Any]) -> list[Any] | None:
        """Return what a link carries."""
        source = self._cached(link[0])
        if source is None or link[1] >= len(source.values):
            return None
        return source.values[link[1]]

    def blocked(self, node_id: str, message: str) -> None:
        """Tell the client that a node blocks what follows; the run goes on and may succeed."""
        data: dict[str, Any] = {
            "prompt_id": self.prompt_id,
            **self._where(node_id),
            "exception_message": f"Execution Blocked: {message}",
            "exception_type": _BLOCKED,
            "traceback": [],
            "current_inputs": [],
            "current_outputs": [],
        }
        self.stage.send("execution_error", data, self.client_id)

    def _fail(self, node_id: str, error: Exception) -> None:
        kind = (
            error.exception_type
            if isinstance(error, SimulatedFailure)
            else exception_name(type(error))
        )
        tip = ""
        if kind == OUT_OF_MEMORY.exception_type:
            tip = "This error means you ran out of memory on your GPU."
        self._message(
            "execution_error",
            **self._where(node_id),
            exception_message=f"{error}\n{tip}",
            exception_type=kind,
            traceback=traceback.format_tb(error.__traceback__),
            current_inputs=NodeCall(self, node_id).formatted_inputs(),
            current_outputs=list(self.graph),
        )

    def _names(self, node_id: str) -> dict[str, Any]:
        return {"node": node_id, "display_node": node_id}

    def _where(self, node_id: str) -> dict[str, Any]:
        node_type = self.graph[node_id]["class_type"]
        return {"node_id": node_id, "node_type": node_type, "executed": list(self._executed)}

    def _message(self, event: str, *, everybody: bool = False, **data: object) -> None:
        """Send an event that history keeps too."""
        stamped = {"prompt_id": self.prompt_id, **data, "timestamp": int(time.time() * 1000)}
        self._messages.append((event, stamped))
        if self.client_id is not None or everybody:
            self.stage.send(event, stamped, self.client_id)

    def _send(self, event: str, **data: object) -> None:
        if self.client_id is not None:
            self.stage.send(event, {**data, "prompt_id": self.prompt_id}, self.client_id)

    def _report(self, node_id: str, **change: object) -> None:
        """Send the state of all nodes that were started; without a client, to everybody."""
        before = self._progress.get(node_id, {"value": 0, "max": 1})
        now: dict[str, Any] = {**before, **change}
        if now["state"] == "finished":
            now["value"] = now["max"]
        ids = {
            "node_id": node_id,
            "prompt_id": self.prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }
        self._progress[node_id] = {**now, **ids}
        data = {"prompt_id": self.prompt_id, "nodes": dict(self._progress)}
        self.stage.send("progress_state", data, self.client_id)


class NodeCall:
    """One node's execution; the context its function gets."""

    def __init__(self, run: PromptRun, node_id: str) -> None:
        self._run = run
        self._node_id = node_id
        self._node_class: NodeClass = NODE_CLASSES[run.graph[node_id]["class_type"]]
        self.folders = run.stage.folders
        self.graph: Graph = run.graph
        self.extra_pnginfo = run.extra_pnginfo
        self.output_bytes = run.stage.knobs.current.output_bytes

    def step(self, done: int, total: int, preview: Callable[[], bytes]) -> None:
        """Take the time of one sampler step and report it."""
        settings = self._run.stage.knobs.current
        time.sleep(settings.step_ms / 1000)
        self._run.progress(self._node_id, done, total)
        if settings.previews:
            self._picture(preview(), "jpeg")

    def show(self, done: int, total: int, png: bytes) -> None:
        """Report progress and send a picture to the client."""
        self._run.progress(self._node_id, done, total)
        self._picture(png, "png")

    def _picture(self, encoded: bytes, kind: str) -> None:
        stage, client_id = self._run.stage, self._run.client_id
        if stage.supports(client_id, "supports_preview_metadata"):
            metadata = {
                "node_id": self._node_id,
                "prompt_id": self._run.prompt_id,
                "display_node_id": self._node_id,
                "parent_node_id": None,
                "real_node_id": self._node_id,
            }
            frame = sockets.picture_frame_with_metadata(encoded, kind, metadata)
        else:
            frame = sockets.picture_frame(encoded, kind)
        stage.send("preview", frame, client_id)

    def text(self, text: str) -> None:
        """Show a text on the node, to everybody."""
        self._run.stage.send("text", sockets.text_frame(self._node_id, text), None)

    def result(self) -> NodeResult:
        """Execute the node, once for each set of values its inputs carry."""
        blocked = self._knob()
        meta = {
            "node_id": self._node_id,
            "display_node": self._node_id,
            "parent_node": None,
            "real_node_id": self._node_id,
        }
        if blocked:
            return NodeResult([[Blocked()] for _ in self._node_class.outputs], None, meta)
        results = [self._call(inputs) for inputs in self._sets()]
        shown = [result.ui for result in results if isinstance(result, Shown)]
        ui = (
            {key: [item for one in shown for item in one[key]] for key in shown[0]}
            if shown
            else None
        )
        values: list[list[Any]] = [[] for _ in self._node_class.outputs]
        for result in results:
            one = result.values if isinstance(result, Shown) else result
            for slot, is_list in enumerate(self._node_class.output_is_list):
                values[slot] += one[slot] if is_list else [one[slot]]
        return NodeResult(values, ui, meta)

    def _knob(self) -> bool:
        """Apply the faults asked for this class; true when the node blocks."""
        knobs = self._run.stage.knobs
        time.sleep(knobs.current.slow_nodes.get(self._node_class.name, 0) / 1000)
        failure = knobs.take_failure(self._node_class.name)
        if knobs.take("out_of_memory"):
            failure = OUT_OF_MEMORY
        if failure is None:
            return False
        if failure.exception_type == _BLOCKED:
            self._run.blocked(self._node_id, failure.message)
            return True
        raise SimulatedFailure(failure)

    def _call(self, inputs: dict[str, Any]) -> tuple[Any, ...] | Shown:
        if any(isinstance(value, Blocked) for value in inputs.values()):
            return tuple(Blocked() for _ in self._node_class.outputs)
        return self._node_class.execute(self, **inputs)

    def _sets(self) -> list[dict[str, Any]]:
        inputs = self._inputs()
        if self._node_class.input_is_list:
            return [dict(inputs)]
        longest = max((len(values) for values in inputs.values()), default=1)
        return [
            {name: values[min(index, len(values) - 1)] for name, values in inputs.items()}
            for index in range(longest)
        ]

    def _inputs(self) -> dict[str, list[Any]]:
        posted = cast("Mapping[str, Any]", self.graph[self._node_id]["inputs"])
        inputs: dict[str, list[Any]] = {}
        for name, value in posted.items():
            if is_link(value):
                inputs[name] = self._run.linked(value) or [None]
            elif self._node_class.declares(name):
                inputs[name] = [value]
        return {name: values for name, values in inputs.items() if self._node_class.declares(name)}

    def formatted_inputs(self) -> dict[str, list[Any]]:
        """Return the inputs as an error message shows them."""
        plain = (int, float, bool, str, type(None))
        return {
            name: [value if isinstance(value, plain) else str(value) for value in values]
            for name, values in self._inputs().items()
        }
