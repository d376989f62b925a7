"""ONNX Runtime sessions from bytes, on the provider that was asked for or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rcm_daemon.bundle.execution import SPIN_US
from rcm_daemon.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence

TENSORRT = "TensorrtExecutionProvider"

# ONNX Runtime resolves external data of a model given as bytes against the working directory; a folder that
# cannot exist makes every such reference fail, so that only hashed bytes are ever loaded.
_NO_FOLDER = "/dev/null/a-bundle-holds-its-weights-inside"

# HEURISTIC: the default search of convolution algorithms is slow and EXHAUSTIVE costs up to a second a shape.
# TF32 is on by default and would move embeddings off the CPU's.
CUDA_OPTIONS = {"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}


def open_session(
    model: bytes,
    name: str,
    provider: Literal["cpu", "cuda", "tensorrt"],
    n_threads: int,
    spin_us: int = SPIN_US,
    *,
    in_graph: bool = False,
    half: bool = False,
    batch: int = 1,
) -> Any:
    """Create one `onnxruntime.InferenceSession` from bytes, without noise on stdout or stderr.

    Parameters
    ----------
    model
        The ONNX file.
    name
        Its file name, for errors.
    provider
        Where every node must run; nothing falls back.
    n_threads
        CPU threads inside an operator.
    spin_us
        How long they wait busily before they sleep.
    in_graph
        Record all kernels of a run as one CUDA graph (provider cuda, IO binding, one shape).
    half
        Whether TensorRT may compute in float16.
    batch
        Slices a run; memory is planned once for that.

    Raises
    ------
    BundleError
        Corrupt file, unknown operator, opset or domain, weights kept outside the file, or no such provider.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal only: what fails comes back as an exception
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    if spin_us == 0:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_FOLDER)
    options.add_free_dimension_override_by_name("batch", batch)
    providers: list[Any] = ["CPUExecutionProvider"]
    if provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        graph = {"enable_cuda_graph": "1"} if in_graph else {}
        providers = [("CUDAExecutionProvider", CUDA_OPTIONS | graph)]
    if provider == "tensorrt":
        providers.insert(0, (TENSORRT, _tensorrt_options(half=half)))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Provider libraries report what they cannot load, and kernels tried in vain, to the logger of the whole
    # process, which sessions do not own. What matters of it comes back as an exception.
    ort.set_default_logger_severity(4)
    try:
        session = ort.InferenceSession(model, options, providers=providers)
    except Exception as error:  # every failure here is the bundle's or the provider's, and has its own class
        raise BundleError(_sentence(str(error), name, provider)) from error
    session.disable_fallback()
    wanted = providers[0] if provider == "cpu" else providers[0][0]
    if session.get_providers()[0] != wanted:
        found = session.get_providers()[0]
        raise BundleError(f"provider {provider} must run {name}, but ONNX Runtime chose {found}")
    if provider == "tensorrt":
        demand_tensorrt(session.get_provider_graph_assignment_info(), name)
    return session


def demand_tensorrt(assigned: Sequence[Any], name: str) -> None:
    """Refuse a network of which TensorRT takes no operator: ONNX Runtime would run all of it on CUDA.

    Parameters
    ----------
    assigned
        What ONNX Runtime says of which provider runs what.
    name
        Of the network, for the message.

    Raises
    ------
    BundleError
        If TensorRT runs nothing of it.
    """
    if not any(one.ep_name == TENSORRT for one in assigned):
        found = ", ".join(sorted({one.ep_name for one in assigned})) or "nothing"
        raise BundleError(f"provider tensorrt must run {name}, it takes no operator of it, {found} runs it")


def _tensorrt_options(*, half: bool) -> dict[str, str]:
    # Building an engine takes minutes: it is kept, under ONNX Runtime's own name for network and device.
    cache = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rcm-daemon"
    folder = (Path(cache) if cache else user) / "tensorrt"
    with contextlib.suppress(OSError):  # without a folder the engine is built at every start
        folder.mkdir(parents=True, exist_ok=True)
    return {
        "device_id": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": "1" if half else "0",
    }


def tensorrt_fault() -> str:
    """Why TensorRT cannot be used here, as half a sentence; empty when device and libraries are there."""
    import onnxruntime as ort

    if "TensorrtExecutionProvider" not in ort.get_available_providers():
        return "this ONNX Runtime is built without TensorRT"
    try:
        importlib.import_module("tensorrt_libs")  # loads the libraries that ONNX Runtime links to
    except (ImportError, OSError):
        return 'TensorRT is not installed: pip install "rcm-daemon[tensorrt]"'
    return cuda_fault()


def cuda_fault() -> str:
    """Why CUDA cannot be used here, as half a sentence; empty when a device and its libraries are there."""
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this ONNX Runtime is built without CUDA"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver was found"
    n_devices = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(n_devices)) != 0 or n_devices.value == 0:
        return "no CUDA device was found"
    with contextlib.redirect_stdout(io.StringIO()):  # preload_dlls prints what it misses
        ort.preload_dlls()
    return ""


def _sentence(reason: str, name: str, provider: str) -> str:
    if "xternal data" in reason:
        return f"a network must hold its weights inside its file, but {name} refers to external data"
    lowered = reason.lower()
    if "protobuf" in lowered or "no graph was found" in lowered:
        return f"a network must be an ONNX file, but {name} is corrupt or no ONNX file"
    if "fallback to cpu ep" in lowered:
        return f"provider {provider} must run all of {name} on the GPU, but ONNX Runtime kept part on the CPU"
    wanted = {"cpu": "known operators, opsets and types", "cuda": "CUDA", "tensorrt": "TensorRT"}[provider]
    text = " ".join(reason.split())
    text = text.rsplit("/onnxruntime_src/", 1)[-1]
    return f"{name} must run here with {wanted}, but ONNX Runtime refused it: {text[:300].rstrip('. ')}"
