"""Of the native module, the networks of speech decoder and codecs; `_C` has them all."""

from collections.abc import Sequence

from innervoice_kernels._C import SupportsDLPack, ThreadTeam

def snake(
    team: ThreadTeam, x: SupportsDLPack, alpha: SupportsDLPack, out: SupportsDLPack, isa: str | None = None
) -> None:
    """Snake, x + sin(a x)^2 / (a + 1e-9): x, out [R, C] float32, alpha [C], C a multiple of 16.

    Raises ValueError for other shapes.
    """

def has_halves() -> bool:
    """Whether products of bfloat16 run here, an option of the classes below: with AVX-512."""

class FlowStage:
    """A stage of the flow's U-Net, its weights packed: residual block, then transformers; see flow_stage.py.

    tensors: conv1, norm1, conv2, norm2, skip, weight and bias each; a block: norm1, qkv (weight alone, the
    queries' scaled), out, norm2, up, down. Weights are float32 [N, taps, K], norms and biases [N]. halves:
    products in bfloat16, added up in float32. isa None: the best of available_isas(). Raises ValueError for
    sizes that do not fit and for an isa that is not there.
    """

    def __init__(
        self,
        tensors: Sequence[SupportsDLPack],
        blocks: Sequence[Sequence[SupportsDLPack]],
        heads: int,
        halves: bool = False,
        isa: str | None = None,
    ) -> None: ...
    def __call__(
        self,
        team: ThreadTeam,
        x: SupportsDLPack,
        n: SupportsDLPack,
        shift: SupportsDLPack,
        out: SupportsDLPack,
        given: tuple[SupportsDLPack, SupportsDLPack] | None = None,
    ) -> None:
        """x [R, T, K], shift [C], out and given [R, T, C] float32; n [R] int64 -> out, zero from n[r] on.
        Raises ValueError.
        """

def group_norm_mish(
    team: ThreadTeam, x: SupportsDLPack, n: SupportsDLPack, weight: SupportsDLPack, bias: SupportsDLPack,
    groups: int, eps: float, out: SupportsDLPack, isa: str | None = None,
) -> None:  # fmt: skip
    """x, out [B, C, T], weight, bias [C] float32; n [B] int64 -> out, zero from n[b] on; see groupnorm.py.
    Raises ValueError.
    """

def relative_attention(
    team: ThreadTeam, q: SupportsDLPack, k: SupportsDLPack, v: SupportsDLPack, bias_u: SupportsDLPack,
    bias_v: SupportsDLPack, positions: SupportsDLPack, visible: SupportsDLPack, out: SupportsDLPack,
    isa: str | None = None,
) -> None:  # fmt: skip
    """q, out [B, H, U, d], k, v [B, H, K, d] float32, visible [B, U, K] bool; see relative.py. d: a multiple
    of 16.

    Raises ValueError.
    """

class RelativeLayer:
    """A layer of the flow's encoder: norm, qkv, out, norm, up, down, weight and bias each; see
    relative_layer.py.
    """

    def __init__(
        self, tensors: Sequence[SupportsDLPack], bias_u: SupportsDLPack, bias_v: SupportsDLPack,
        positions: SupportsDLPack, isa: str | None = None,
    ) -> None: ...  # fmt: skip
    def __call__(
        self, team: ThreadTeam, x: SupportsDLPack, cache: SupportsDLPack, visible: SupportsDLPack,
        closed: SupportsDLPack, out: SupportsDLPack, cache_after: SupportsDLPack,
    ) -> None:  # fmt: skip
        """x, out [B, U, D], caches [B, C, 2, D] float32; visible [B, U, C + U] bool, closed [B] int64. Raises
        ValueError.
        """

class RealTransform:
    """The Fourier transform of `size` real numbers, an even number of 4 or more; see fourier.py. Raises
    ValueError.
    """

    def __init__(self, size: int, isa: str | None = None) -> None: ...
    def stft(
        self, team: ThreadTeam, x: SupportsDLPack, state: SupportsDLPack, n: SupportsDLPack,
        window: SupportsDLPack, hop: int, start: SupportsDLPack, end: SupportsDLPack, out: SupportsDLPack,
        state_after: SupportsDLPack,
    ) -> None:  # fmt: skip
        """x [B, T], states [B, N - hop], out [B, N + 2, T / hop] float32; n, start, end [B] int64; see
        stft.py.
        """
    def istft(
        self, team: ThreadTeam, real: SupportsDLPack, imag: SupportsDLPack, state: SupportsDLPack | None,
        n: SupportsDLPack, window: SupportsDLPack, hop: int, start: SupportsDLPack, end: SupportsDLPack,
        first: int, out: SupportsDLPack, state_after: SupportsDLPack | None,
    ) -> None:  # fmt: skip
        """real, imag [B, N / 2 + 1, T] -> out [B, columns], sample `first` on; float32; n, start, end [B]
        int64; see istft.py.
        """
    def log_mel(
        self,
        team: ThreadTeam,
        samples: SupportsDLPack,
        filters: SupportsDLPack,
        hop: int,
        out: SupportsDLPack,
    ) -> None:
        """samples [B, W], filters [N / 2 + 1, M] -> out [B, M, (W - N) / hop + 1], float32; see mel.py."""

class FrameConv:
    """A convolution over frames, its weight [N, taps, K] packed; see frame_conv.py. Arguments and errors as
    FlowStage.
    """

    def __init__(
        self, weight: SupportsDLPack, bias: SupportsDLPack, halves: bool = False, isa: str | None = None
    ) -> None: ...
    def __call__(
        self,
        team: ThreadTeam,
        x: SupportsDLPack,
        n: SupportsDLPack,
        stride: int,
        pad: int,
        out: SupportsDLPack,
        out_n: SupportsDLPack,
    ) -> None:
        """x [R, T, K], out [R, T', N] float32; n, out_n [R] int64: true frames of both. Raises ValueError."""

class ResidualUnit:
    """A residual unit of the vocoder, weights [C, k, C] packed; see residual.py. C: a multiple of 16, or of 4
    up to 16.
    """

    def __init__(
        self,
        alpha: SupportsDLPack,
        first: SupportsDLPack,
        first_bias: SupportsDLPack,
        beta: SupportsDLPack,
        second: SupportsDLPack,
        second_bias: SupportsDLPack,
        dilation: int,
        halves: bool = False,
        isa: str | None = None,
    ) -> None: ...
    def __call__(
        self,
        team: ThreadTeam,
        x: SupportsDLPack,
        history: SupportsDLPack,
        inner: SupportsDLPack,
        n: SupportsDLPack,
        bounds: tuple[SupportsDLPack, SupportsDLPack] | None,
        y: SupportsDLPack,
        history_after: SupportsDLPack,
        inner_after: SupportsDLPack,
    ) -> None:
        """x, y [B, C, T], history [B, C, 2 h d], inner [B, C, 2 h] float32; n [B], bounds [B] each int64.
        Raises ValueError.
        """

class TapsConv:
    """A convolution of a stream, weight [N, taps, K] float32 packed; see taps.py. Raises ValueError for
    misshapen tensors.
    """

    def __init__(
        self, weight: SupportsDLPack, bias: SupportsDLPack | None, dilation: int = 1, isa: str | None = None
    ) -> None: ...
    def __call__(
        self, team: ThreadTeam, before: SupportsDLPack, x: SupportsDLPack, out: SupportsDLPack
    ) -> None:
        """Convolve before [B, P, K] and x [B, T, K] into out [B, P + T - (taps - 1) dilation, N], float32.

        Raises ValueError for other shapes.
        """

class EluUnit:
    """A residual unit of SEANet: wide [H, k, C], narrow [C, 1, H], shortcut [C, 1, C], with their biases; see
    elu_unit.py.
    """

    def __init__(
        self,
        wide: tuple[SupportsDLPack, SupportsDLPack | None],
        narrow: tuple[SupportsDLPack, SupportsDLPack | None],
        shortcut: tuple[SupportsDLPack, SupportsDLPack | None] | None = None,
        dilation: int = 1,
        isa: str | None = None,
    ) -> None: ...
    def __call__(
        self, team: ThreadTeam, before: SupportsDLPack, x: SupportsDLPack, elu: bool, out: SupportsDLPack
    ) -> None:
        """before [B, P, C], x [B, T, C], out [B, P + T - (k - 1) dilation, C] float32. Raises ValueError."""

class WindowLayer:
    """A layer of Mimi's transformer: norm, its bias, qkv, out, scale, norm, its bias, up, down, scale; see
    window_layer.py.
    """

    def __init__(
        self, tensors: Sequence[SupportsDLPack], biases: Sequence[SupportsDLPack | None], heads: int,
        groups: int, window: int, eps: float, isa: str | None = None,
    ) -> None: ...  # fmt: skip
    def __call__(
        self, team: ThreadTeam, x: SupportsDLPack, cos: SupportsDLPack, sin: SupportsDLPack,
        ring: SupportsDLPack, slots: SupportsDLPack, start: SupportsDLPack, n: SupportsDLPack,
        out: SupportsDLPack,
    ) -> None:  # fmt: skip
        """x, out [B, T, D]; cos, sin [B T, d / 2]; ring [S, 2, R, G, d], written; slots, start, n [B] int64.
        ValueError.
        """

class StreamConv:
    """A convolution of the vocoder, channels first: weight [C' u, taps, s C], bias [C' u]; see
    stream_conv.py.

    A step takes s columns and gives u; slope: of the leaky ReLU before, 1: none. Raises ValueError for
    misshapen tensors.
    """

    def __init__(
        self, weight: SupportsDLPack, bias: SupportsDLPack, dilation: int = 1, stride: int = 1, up: int = 1,
        slope: float = 1.0, isa: str | None = None,
    ) -> None: ...  # fmt: skip
    def __call__(
        self, team: ThreadTeam, before: SupportsDLPack, x: SupportsDLPack, first: int,
        bounds: tuple[SupportsDLPack, SupportsDLPack] | None, out: SupportsDLPack,
        kept: tuple[SupportsDLPack, SupportsDLPack] | None = None,
    ) -> None:  # fmt: skip
        """before [B, C, P], x [B, C, T], out [B, C', O] float32, from column `first` of the result on, with
        zeros behind x.

        bounds [B] each, as in residual.py; kept: n [B] int64 and what the rows keep behind so many columns of
        x, [B, C, P], which is written. Raises ValueError.
        """

class DoubleConv:
    """A convolution of a stream in float64, channels first: weight [C', taps, C], bias [C']; see
    stream_conv.py. ValueError.
    """

    def __init__(
        self, weight: SupportsDLPack, bias: SupportsDLPack, dilation: int = 1, isa: str | None = None
    ) -> None: ...
    def __call__(
        self, team: ThreadTeam, before: SupportsDLPack, x: SupportsDLPack,
        bounds: tuple[SupportsDLPack, SupportsDLPack] | None, out: SupportsDLPack, n: SupportsDLPack,
        after: SupportsDLPack,
    ) -> None:  # fmt: skip
        """before, after [B, C, (taps - 1) dilation], x [B, C, T], out [B, C', T] float64; n, bounds [B]
        int64. ValueError.
        """
