"""Where a network is cut: what lies below a named module and is frozen, what lies above, and outputs taken in passing.

The network is traced shallowly with torch.fx: only the containers on the way to a named module are opened, every other
module stays one call of the original object. Below the cut is all that its output is computed from; above is all that
the logits are computed from, down to that output. If the image itself is still reached on the way down, a skip
connection crosses the cut, and it is refused. No family of networks is known by name here, the graph alone decides; and
each result is checked once on random images against the undivided network, bit for bit.

    pooled   what the last linear layer reads, whose output is the logits (dropout before it stands above the cut)
    image    the image itself: nothing is frozen

Images are normalised, (B, 3, S, S). A network that is looked at here is put into eval mode.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from stages.cli import UserError
from stages.params import suggest

POOLED, IMAGE, LOGITS = "pooled", "image", "logits"


@dataclass(frozen=True)
class Split:
    """A network in two parts, which share its modules.

    below : image -> activation (B, *shape); above : activation -> logits (B, classes). Both are in eval mode; for
    training call above.train(), never below.train().
    """

    below: nn.Module
    above: nn.Module
    shape: tuple[int, ...]


def split(network: nn.Module, cut: str, image_size: int) -> Split:
    """Divide a network at a module so that above(below(x)) is network(x), exactly.

    Raises UserError when there is no such module, when a skip connection crosses the cut, or when the network cannot be
    traced there.
    """
    images = random_images(image_size)
    if cut == IMAGE:
        return Split(nn.Identity(), network, tuple(images.shape[1:]))

    def refused(reason: object) -> UserError:
        return UserError(f"cut: {reason}; {_others(network, cut, image_size)}")

    with plain_attention(), torch.no_grad():
        run = _run(network, images, (cut,))
        try:
            traced = _trace(network, (cut,), run)
        except UserError as error:
            raise refused(error) from None
        at = traced.node(cut)
        if at is traced.end:
            raise refused(f"{cut}: nothing lies above it")
        upper = _reach([traced.end], stop=at)
        if any(n.op == "placeholder" for n in upper):
            raise refused(f"{cut}: a skip connection crosses it, so what lies above needs more than its output")
        below = _part(network, traced.graph, _reach([at]), at)
        activation = below(images)
        if activation.shape[0] != len(images):
            raise refused(f"{cut}: its output has not one entry per image")
        above = _above(network, traced, traced.end, at, activation)
        if not torch.equal(above(below(images)), run.logits):
            raise refused(f"{cut}: the parts do not compute what the whole does")
    return Split(below, above, tuple(activation.shape[1:]))


@dataclass(frozen=True)
class Body:
    """What lies between a cut and the last linear layer: activation (B, *shape) -> what that reads (B, width).

    classifier : the name of that layer; None where the network has none, and ends in what one would read, or where a
        1 x 1 convolution is in its place: then the map that this one reads is averaged.
    """

    part: nn.Module
    width: int
    classifier: str | None


def body(network: nn.Module, cut: str, image_size: int) -> Body:
    """Return what lies between a cut and the last linear layer.

    It shares its modules with the network, and is in eval mode. Raises UserError as `split` does, and when the logits
    do not come from one linear layer.
    """
    if cut not in (IMAGE, POOLED):
        split(network, cut, image_size)
    images = random_images(image_size)
    with plain_attention(), torch.no_grad():
        run = _run(network, images, ())
        convolution = None if run.pooled is not None else _convolution_for_classes(network, images, run.logits)
        names = [n for n in (cut, convolution or POOLED) if n != IMAGE]
        run = _run(network, images, names)
        traced = _trace(network, names, run)
        if convolution is not None:
            end = cast("fx.Node", traced.outputs[convolution].args[0])
            with traced.graph.inserting_after(end):
                end = traced.graph.call_function(_mean_of_map, (end,))
        else:  # a network without a classifier ends in what one would read
            end = traced.end if run.classifier is None else cast("fx.Node", traced.outputs[run.classifier].args[0])
        at = traced.node(cut)
        activation = images if cut == IMAGE else _part(network, traced.graph, _reach([at]), at)(images)
        part = _above(network, traced, end, at, activation)
        vectors = part(activation)
        if run.pooled is not None and not torch.equal(vectors, run.pooled):
            raise UserError(f"cut: {cut}: what lies above it does not compute what the network does; name another")
    return Body(part, vectors.shape[1], run.classifier)


def _convolution_for_classes(network: nn.Module, images: Tensor, logits: Tensor) -> str | None:
    """Return the name of the last 1 x 1 convolution with as many channels as there are logits, as SqueezeNet has it."""
    found: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda _module, _arguments, out: found.append(name) if out.shape[1] == logits.shape[1] else None

    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)}
    hooks = [m.register_forward_hook(note(n)) for n, m in layers.items()]
    try:
        _forward(network, images)
    finally:
        _remove(hooks)
    return found[-1] if found else None


def _above(network: nn.Module, traced: _Traced, end: fx.Node, at: fx.Node, activation: Tensor) -> fx.GraphModule:
    """Make a module of what lies between two nodes, which leaves the activation that it is given as it is."""
    upper = _reach([end], stop=at)
    above = _part(network, traced.graph, upper, end, start=at)
    trial = activation.clone()
    version = trial._version
    above(trial)
    if trial._version == version:
        return above
    return _part(network, traced.graph, upper, end, start=at, copy=True)  # it works in place: give it a copy


def taken(
    network: nn.Module, cut: str, layers: Sequence[str], logits: bool, image_size: int, only: str | None = None
) -> nn.Module:
    """Return a module that maps images to a tuple: the output at the cut, or of each layer, pooled; then the logits.

    cut : a module whose output is given as it is (B, *shape); or `pooled`, and then `layers` (if any, else `pooled`
    alone) are given as vectors (B, D): of a map the mean over its area, of tokens the class token, where there is one,
    and the mean of those of the patches. Such a layer need not be a place to cut at.
    only : give this one of these outputs alone.
    Raises UserError for a name that is no module, a cut that `split` refuses, and an output whose axes are not plain.
    """
    names = tuple(layers) if cut == POOLED and layers else (cut,)
    if cut != POOLED:
        split(network, cut, image_size)  # what is stored is to be trained above: refuse now what cannot be
    if only is not None:
        names, logits = tuple(name for name in names if name == only), only == LOGITS
    images = random_images(image_size)
    with plain_attention(), torch.no_grad():
        run = _run(network, images, names)
        traced = _trace(network, names, run)
        results, expected = _outputs(network, traced, run, names, image_size, pooled=cut == POOLED)
        if logits:
            results.append(traced.end)
            expected.append(run.logits)
        part = _part(network, traced.graph, _reach(results), tuple(results))
        for name, found, wanted in zip((*names, LOGITS), part(images), expected, strict=False):
            if not torch.equal(found, wanted):
                raise UserError(
                    f"{name}: taken out of the network it is not what the network computes; name another layer"
                )
    return part


def inner(network: nn.Module, cut: str, layers: Sequence[str], image_size: int) -> nn.Module:
    """Return a module that maps the activation at a cut (B, *shape) to outputs of layers above it, as vectors (B, D).

    Each is pooled as `taken` does it, and all lie side by side; `pooled` may be among them, and the cut itself. Raises
    UserError as `taken` and `split` do, and for a layer that does not lie above the cut.
    """
    if cut not in (IMAGE, POOLED):
        split(network, cut, image_size)
    images = random_images(image_size)
    with plain_attention(), torch.no_grad():
        names = tuple(dict.fromkeys(name for name in (cut, *layers) if name != IMAGE))
        run = _run(network, images, names)
        traced = _trace(network, names, run)
        results, expected = _outputs(network, traced, run, layers, image_size, pooled=True)
        at, start = traced.node(cut), traced.node(IMAGE)
        for name, result in zip(layers, results, strict=True):
            if start in _reach([result], stop=at):
                raise UserError(f"layers: {name} does not lie above the cut {cut}: name others, or cut lower")
        end = traced.graph.call_function(_side_by_side, tuple(results))
        activation = images if cut == IMAGE else run.output(cut)
        part = _above(network, traced, end, at, activation)
        if not torch.equal(part(activation), _side_by_side(*expected)):
            raise UserError(f"layers: {', '.join(layers)}: above {cut} they are not what the network computes")
    return part


def _outputs(
    network: nn.Module, traced: _Traced, run: _Run, names: Sequence[str], image_size: int, pooled: bool
) -> tuple[list[fx.Node], list[Tensor]]:
    """Take outputs in passing, pooled or as they are: their nodes in the graph, and what they must give."""
    nodes, expected = [], []
    for name in names:
        output = run.output(name)
        pool, others = _pooling(network, name, output, image_size) if pooled and name != POOLED else (_copy, ())
        with traced.graph.inserting_after(traced.node(name)):  # here, before something works in place on it
            nodes.append(traced.graph.call_function(pool, (traced.node(name), *others)))
        expected.append(pool(output, *others))
    return nodes, expected


def cuts(network: nn.Module, image_size: int) -> list[str]:
    """Return the modules at which a network can be cut, from the image up, and `pooled` where there is one.

    Found without tracing: a module is a cut when it runs once and every way from the logits to the image leads through
    its output; that is, when its node dominates the graph that autograd records. A module that hands on what it is
    given is none: the one before it is, or in a shortcut not even that.
    """
    found: dict[str, list[Any]] = {}
    given: dict[str, Any] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
            node = getattr(output, "grad_fn", None)
            found.setdefault(name, []).append(None if node is given[name] else node)

        return hook

    def before(name: str) -> Callable[..., None]:  # what follows may work in place on its input
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            given[name] = getattr(arguments[0], "grad_fn", None) if arguments else None

        return hook

    images = random_images(image_size).requires_grad_()
    thawed = [p for p in network.parameters() if p.requires_grad]
    modules = {n: m for n, m in network.named_modules() if n and not _in_a_norm(network, n)}
    hooks = [m.register_forward_pre_hook(before(n)) for n, m in modules.items()]
    hooks += [m.register_forward_hook(note(n)) for n, m in modules.items()]
    try:
        network.requires_grad_(False)
        with torch.enable_grad():
            logits = _forward(network, images)
    finally:
        _remove(hooks)
        for parameter in thawed:
            parameter.requires_grad_(True)
    order = _dominators(logits.grad_fn)
    names = [
        n for n, nodes in found.items() if len(nodes) == 1 and nodes[0] in order and nodes[0] is not logits.grad_fn
    ]
    names.sort(key=lambda n: -order[found[n][0]])  # stable: of two names for one tensor the inner module comes first
    with torch.no_grad():
        return names + [POOLED] * (_run(network, images.detach(), ()).pooled is not None)


def random_images(image_size: int, count: int = 2) -> Tensor:
    """Return normalised images of noise (count, 3, S, S), always the same; no other random numbers are disturbed."""
    return torch.randn(count, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))


# ---- one eager pass, to see what the network does


@dataclass
class _Run:
    """What an eager pass went through: the logits, the outputs asked for (a list per name, one per call), and `pooled`.

    classifier : name of the linear layer whose output is the logits; pooled : what it read.
    """

    logits: Tensor
    outputs: dict[str, list[Any]]
    classifier: str | None = None
    pooled: Tensor | None = None

    def output(self, name: str) -> Tensor:
        """The one output of a module; raises UserError when there are none or several, or when it is no tensor."""
        outputs = [self.pooled] if name == POOLED else self.outputs.get(name, [])
        if len(outputs) != 1:
            how = f"runs {len(outputs)} times" if outputs else "is never called as a module"
            raise UserError(
                f"{name}: this module {how} in a pass of the network, so it has no one output; name another"
            )
        if not isinstance(outputs[0], Tensor):
            raise UserError(f"{name}: this module gives no tensor but {type(outputs[0]).__name__}; name another")
        return outputs[0]


def _run(network: nn.Module, images: Tensor, names: Sequence[str]) -> _Run:
    """Pass images and note the outputs of modules; raises UserError for a name that is no module, or no `pooled`."""
    modules = dict(network.named_modules())
    for name in names:
        if name != POOLED and (name not in modules or not name):
            raise UserError(f"{name} is no module of the network; {_others(network, name, images.shape[-1])}")
    outputs: dict[str, list[Any]] = {}
    linear: list[tuple[str, Tensor, Tensor]] = []

    def keep(name: str) -> Callable[..., None]:
        # A copy: what follows may work in place on the output.
        return lambda _module, _arguments, out: outputs.setdefault(name, []).append(
            out.clone() if isinstance(out, Tensor) else out
        )

    def note(name: str) -> Callable[..., None]:
        return lambda _module, arguments, out: linear.append((name, arguments[0], out))

    hooks = [modules[n].register_forward_hook(keep(n)) for n in names if n != POOLED]
    hooks += [m.register_forward_hook(note(n)) for n, m in modules.items() if isinstance(m, nn.Linear)]
    try:
        logits = _forward(network, images)
    finally:
        _remove(hooks)
    run = _Run(logits, outputs)
    for name, read, gave in linear:
        if gave.data_ptr() == logits.data_ptr() and gave.shape == logits.shape:
            run.classifier, run.pooled = name, read
    if run.classifier is None and getattr(network, "num_classes", None) == 0 and logits.ndim == 2:
        run.pooled = logits  # a network without a classifier ends in what one would read
    if POOLED in names and (run.pooled is None or run.pooled.ndim != 2):
        raise UserError(
            "pooled: the logits of this network do not come from one linear layer that reads a vector; name a layer "
            f"under layers instead; {_others(network, POOLED, images.shape[-1])}"
        )
    return run


def _forward(network: nn.Module, images: Tensor) -> Tensor:
    try:
        logits = network.eval()(images)  # in train mode dropout would be drawn, and batch norms would move
    except Exception as error:  # whatever a network's own code may raise
        size, reason = images.shape[-1], (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"image_size: {size}: the network takes no images of {size} x {size} pixels ({reason})"
        ) from error
    if not isinstance(logits, Tensor):
        raise UserError(f"the network gives {type(logits).__name__} instead of logits: it is no classifier")
    return logits


def _others(network: nn.Module, name: str, image_size: int) -> str:
    """Say which module may have been meant, and where the network can be cut."""
    known = cuts(network, image_size)
    near = suggest(name, known)
    coarse = [n for n in known if n.count(".") < 2]
    good = f"good cuts: {', '.join(coarse if len(coarse) <= 40 else [n for n in coarse if '.' not in n])}"
    return f"{near} {good}" if near.startswith("did you mean") else good


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep nn.MultiheadAttention off its fast path, which rounds otherwise and is taken only without gradients."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Count multiplications with addition; gives a function that tells how many there were so far."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with plain_attention(), sdpa_kernel(SDPBackend.MATH), counter:  # it knows nothing of attention's fast paths
        yield lambda: int(counter.get_total_flops() // 2)


def count_operations(part: nn.Module, one: Tensor) -> int:
    """Return how many multiplications with addition a part of a network takes for a batch of one."""
    with torch.no_grad(), counting() as counted:
        part(one)
        return counted()


def _remove(hooks: Collection[Any]) -> None:
    for hook in hooks:
        hook.remove()


def _dominators(end: Any) -> dict[Any, int]:
    """Return the nodes of autograd's graph that all ways from its end lead through, with their place on the way.

    The graph is walked so that a node comes after all that depend on it. When one comes while nothing else is still
    waiting, no edge leads past it.
    """
    waiting_for: dict[Any, int] = {end: 0}
    todo = [end]
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None:
                if node not in waiting_for:
                    todo.append(node)
                waiting_for[node] = waiting_for.get(node, 0) + 1
    order: dict[Any, int] = {}
    ready, seen = [end], {end}
    step = 0
    while ready:
        node = ready.pop()
        seen.discard(node)
        if not seen:
            order[node] = step
        step += 1
        for below, _ in node.next_functions:
            if below is not None:
                seen.add(below)
                waiting_for[below] -= 1
                if not waiting_for[below]:
                    ready.append(below)
    return order


# ---- tracing and slicing


class _Tracer(fx.Tracer):
    """Opens only the containers that hold a named module; all else stays a call of the original object."""

    def __init__(self, names: Sequence[str]):
        from timm import layers

        super().__init__(autowrap_functions=tuple(layers.get_notrace_functions()))  # type: ignore
        self.opened = {"", *(n.rsplit(".", k)[0] for n in names for k in range(1, n.count(".") + 1))}
        self.outputs: dict[str, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return module_qualified_name not in self.opened

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs[self.path_of_module(m)] = output.node
        return output


@dataclass
class _Traced:
    """A network's shallow graph; end : the node of the logits; outputs : the node of each module that was called."""

    graph: fx.Graph
    end: fx.Node
    outputs: dict[str, fx.Node]
    pooled: fx.Node | None = field(default=None)

    def node(self, name: str) -> fx.Node:
        """The node of a module's output, of what the last linear layer reads, or of the image."""
        if name == IMAGE:
            image: fx.Node = next(n for n in self.graph.nodes if n.op == "placeholder")
            return image
        if name == POOLED:
            assert self.pooled is not None
            return self.pooled
        return self.outputs[name]


def _trace(network: nn.Module, names: Sequence[str], run: _Run) -> _Traced:
    for name in names:
        if name != POOLED and _in_a_norm(network, name):
            raise UserError(
                f"{name} lies inside a normalisation layer, which cannot be taken apart; name the layer itself"
            )
        if name != POOLED:
            run.output(name)
    needed = [n for n in names if n != POOLED]
    if POOLED in names and run.classifier is not None:
        needed.append(run.classifier)
    tracer = _Tracer(needed)
    # Arguments other than the image keep their defaults: of a proxy `mask is not None` would be true.
    parameters = inspect.signature(network.forward).parameters
    defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
    try:
        graph = tracer.trace(network.eval(), concrete_args=defaults)
    except Exception as error:  # the network's own code runs on proxies here, and may fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        inner = " or ".join(n.rpartition(".")[0] or "another module" for n in needed) or "another layer"
        raise UserError(f"{', '.join(names)}: the network cannot be traced there ({reason}); try {inner}") from error
    end = next(n for n in reversed(graph.nodes) if n.op == "output").args[0]
    if not isinstance(end, fx.Node):
        raise UserError("the network gives more than logits: it is no classifier")
    traced = _Traced(graph, end, tracer.outputs)
    if POOLED in names:
        traced.pooled = end if run.classifier is None else _before_dropout(network, tracer.outputs[run.classifier])
    return traced


def _before_dropout(network: nn.Module, classifier: fx.Node) -> fx.Node:
    node = cast("fx.Node", classifier.args[0])
    while node.target is functional.dropout or (
        node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), nn.Dropout | nn.Identity)
    ):
        node = cast("fx.Node", node.args[0])
    return node


def _in_a_norm(network: nn.Module, name: str) -> bool:
    """Whether a module lies inside a batch norm: tracing through it would fix whether it trains."""
    parts = name.split(".")
    holders = (network.get_submodule(".".join(parts[:k])) for k in range(1, len(parts)))
    return any(isinstance(h, nn.modules.batchnorm._NormBase) for h in holders)


def _reach(nodes: Sequence[fx.Node], stop: fx.Node | None = None) -> set[fx.Node]:
    """Return some nodes and all that they are computed from, down to the image, or to `stop`, which is left out."""
    found: set[fx.Node] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node is not stop and node not in found:
            found.add(node)
            todo += node.all_input_nodes
    return found


def _part(
    network: nn.Module,
    graph: fx.Graph,
    keep: set[fx.Node],
    result: fx.Node | tuple[fx.Node, ...],
    start: fx.Node | None = None,
    copy: bool = False,
) -> fx.GraphModule:
    """Make a module of some nodes of a network's graph, with `start` as its input if not the image."""
    new, made = fx.Graph(), dict[fx.Node, fx.Node]()
    if start is not None:
        made[start] = new.placeholder("activation")
        if copy:
            made[start] = new.call_function(_copy, (made[start],))
    for node in graph.nodes:
        if node in keep:
            made[node] = new.node_copy(node, made.__getitem__)
    new.output(tuple(made[r] for r in result) if isinstance(result, tuple) else made[result])
    module = fx.GraphModule(network, new)
    for node in [n for n in new.nodes if n.target is functional.dropout]:
        # Traced in eval mode it would never drop; as a module it follows train() and eval() again.
        module.add_submodule(f"dropout_{node.name}", nn.Dropout(node.kwargs.get("p", 0.5)))
        node.op, node.target, node.args, node.kwargs = "call_module", f"dropout_{node.name}", node.args[:1], {}
    module.recompile()
    return module.eval()


# ---- pooling

_Pool = Callable[..., Tensor]


def _copy(output: Tensor) -> Tensor:
    return output.clone()


def _side_by_side(*vectors: Tensor) -> Tensor:
    return torch.cat(vectors, dim=1)


def _mean_of_map(output: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C)."""
    return output.mean((2, 3))


def _mean_of_channels_last_map(output: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C)."""
    return output.mean((1, 2))


def _mean_of_tokens(output: Tensor, first: int) -> Tensor:
    """(B, N, C) -> (B, C), over the patch tokens, which begin at `first`."""
    return output[:, first:].mean(1)


def _class_token_and_mean(output: Tensor, first: int) -> Tensor:
    """(B, N, C) -> (B, 2 C): the class token, then the mean of the patch tokens, which begin at `first`."""
    return torch.cat([output[:, 0], output[:, first:].mean(1)], 1)


def _pooling(network: nn.Module, name: str, output: Tensor, image_size: int) -> tuple[_Pool, tuple[int, ...]]:
    """Choose how a layer's output (2 images) becomes vectors: a function and what it takes beside the output.

    Raises UserError when the output's axes can be read in two ways, or in none.
    """
    shape = tuple(output.shape[1:]) if len(output) == 2 else ()
    if len(shape) == 1:
        return _copy, ()
    if len(shape) == 2:
        return _pooling_of_tokens(network, name, *shape)
    if len(shape) == 3:
        first, last = shape[0] == shape[1], shape[1] == shape[2]
        if first and last:
            first, last = _axes_of_map(network, name, output, image_size)
        if first != last:
            return (_mean_of_channels_last_map if first else _mean_of_map), ()
    raise UserError(
        f"layers: {name}: its output for 2 images is {' x '.join(map(str, output.shape))}, which is not plainly a "
        "vector, a map or tokens; name another layer"
    )


def _axes_of_map(network: nn.Module, name: str, output: Tensor, image_size: int) -> tuple[bool, bool]:
    """Whether the first two or the last two axes of a cube are the map: those that grow with the image."""
    try:
        larger = _run(network, random_images(2 * image_size), (name,)).output(name)
    except UserError:  # the network takes images of one size alone
        return False, False
    grown = [a != b for a, b in zip(output.shape, larger.shape, strict=True)]
    return grown == [False, True, True, False], grown == [False, False, True, True]


def _pooling_of_tokens(network: nn.Module, name: str, tokens: int, width: int) -> tuple[_Pool, tuple[int, ...]]:
    # timm's networks say how many tokens come before those of the patches, torchvision's only that one does. The
    # patches are a square: where all tokens make one, the others are not there yet (after the patch embedding).
    has_class_token = any(getattr(network, a, None) is not None for a in ("cls_token", "class_token"))
    before = getattr(network, "num_prefix_tokens", 1 if has_class_token else None)
    if before is not None and _is_square(tokens - before):
        return (_class_token_and_mean if has_class_token else _mean_of_tokens), (before,)
    if before is not None and _is_square(tokens):
        return _mean_of_tokens, (0,)
    raise UserError(
        f"layers: {name}: its output per image is {tokens} x {width}, and the network does not say which of these are "
        "tokens; name another layer"
    )


def _is_square(count: int) -> bool:
    return count > 0 and isqrt(count) ** 2 == count
