# %% [markdown]
# # A tour of firebox
#
# From handwritten digits to an int8 network that fits a microcontroller, in about a minute.
#
# Run the whole file with `make tour` or `python examples/tour.py`, or open it in VS Code, PyCharm, Spyder or Jupyter
# (with Jupytext) and run it cell by cell. It needs no download: the digits come with scikit-learn.

# %%
import shutil
from pathlib import Path

from firebox import (
    Ensemble,
    Session,
    evaluate,
    export_network,
    fit_file,
    load_network,
    open_images,
    plan,
    profile,
    train,
)
from firebox.export import ExportConfig
from firebox.model_zoo import TrainingConfig
from firebox.runtime import format_size, split_images

OUT = Path("build/tour")
shutil.rmtree(OUT, ignore_errors=True)

# %% [markdown]
# ## Train
#
# `squeezenet_micro` is a SqueezeNet for 32x32 images. Three fire modules are enough for digits; `network` changes any
# value of the zoo's configuration. The learning rate goes through two cycles, and `snapshots` keeps the network at the
# end of each.

# %%
config = TrainingConfig(
    model="squeezenet_micro",
    data="digits",
    network={"num_fires": 3, "pools": (2,), "base_e": 48},
    epochs=10,
    snapshots=2,
    seed=1,
)
trained = train(config, OUT / "run")
print(f"{trained.parameters:,} parameters, {trained.val_accuracy:.1%} of {trained.val_images} unseen digits are right")

# %% [markdown]
# The run is a folder with the configuration, log, learning curves and checkpoints. The same seed gives the same
# weights.

# %%
print(*sorted(path.name for path in (OUT / "run").iterdir()))

# %% [markdown]
# ## Export
#
# An export traces the network, calibrates it on some images, quantizes it to int8 and writes ONNX and TFLite files.
# Before it writes anything, it runs all files on other images and compares them with the network. Here both snapshots
# are exported.

# %%
seen, unseen = split_images(open_images(config.data), config.val_fraction, config.seed)
files = {}
for number, snapshot in enumerate(trained.snapshots, start=1):
    exported = export_network(
        load_network(snapshot), OUT / f"snapshot{number}", seen, ExportConfig(precisions=("int8",), effort="fast")
    )
    for parity in exported.parity:
        print(f"snapshot {number}: {parity.file} agrees with the network on {parity.agreement:.1%} of the images")
    files |= {f"{number} {path.suffix[1:]}": path for path in exported.files}

model = OUT / "snapshot2" / "model.int8.tflite"

# %% [markdown]
# ## Plan
#
# How much memory does it need on a microcontroller? The plan computes the arena of tflite-micro, byte for byte, without
# running anything, and compares all that tflite-micro needs with a budget.

# %%
BUDGET = 24 * 1024
planned = plan(model)
print(f"arena {format_size(planned.arena_bytes)}, total {format_size(planned.total_bytes or 0)}")
print(planned.verdict(BUDGET).text())

# %% [markdown]
# ## Fit
#
# It does not fit, so `fit_file` rewrites the network. The new one splits layers into stripes, needs less memory and
# computes the same integers; the outputs of both are compared before the new files are written.

# %%
fitted = fit_file(model, BUDGET, OUT / "fitted").fit
print(f"total {format_size(fitted.after.total_bytes or 0)} for {fitted.extra_macs:+.1%} multiply-accumulates")
print(fitted.after.verdict(BUDGET).text())

# %% [markdown]
# ## Classify
#
# A session loads a file and takes images of any size, as paths, bytes or arrays. Preprocessing and class names come
# from the file itself.

# %%
name = unseen.names[0]
with Session(model) as session:
    print(f"{name}:", *(f"{found.label} ({found.score:.0%})" for found in session.classify(unseen.read(name), top=3)))

# %% [markdown]
# ## Profile
#
# How fast is it here? `profile` measures until the median latency is stable, for two seconds at most.

# %%
measured = profile(model, max_seconds=2)
print(f"{measured.backend}: p50 {measured.p50_ms:.3f} ms, p99 {measured.p99_ms:.3f} ms over {measured.runs} runs")

# %% [markdown]
# ## Evaluate
#
# An ensemble of snapshots is often more accurate than any one of them. It is evaluated like a single model.

# %%
sessions = {name: Session(path) for name, path in files.items()}
models = {**sessions, "ensemble": Ensemble({name: sessions[name] for name in ("1 tflite", "2 tflite")})}
for found in evaluate(models, unseen):
    print(f"{found.name:10} {found.top1:.1%}")
for session in sessions.values():
    session.close()
