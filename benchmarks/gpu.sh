#!/usr/bin/env bash
# What a GPU makes of it, in one table with the card's name: both stages on the photos of VOC's
# layout in ROOT, the layer's benchmark, and stage 1 of as many photos as VOC has, by repetition.
#
#     benchmarks/gpu.sh --root VOCdevkit/VOC2012 [--classes cat,dog] [--out runs/gpu]
#     benchmarks/gpu.sh --device cpu [--out runs/gpu-dry]
#
# The second form tries the script itself in some minutes, on drawn photos and a tiny network; its
# figures say nothing. The table is OUT/gpu.md. What is done is not done again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python} device=cuda root="" out=runs/gpu classes=()
while [ $# -gt 0 ]; do
    case "$1" in
        --device) device=$2 ;;
        --root) root=$2 ;;
        --out) out=$2 ;;
        --classes) classes=(--classes "$2") ;;
        *) echo "gpu.sh: unknown option $1" >&2; exit 2 ;;
    esac
    shift 2
done
mkdir -p "$out"
# The name of the recipe's backbone, and as many photos as VOC's train_aug has.
setting="vgg16 256 8" count=10582 run=() conv=()
case "$device" in
    cuda)
        if ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
            echo "gpu.sh: torch sees no GPU here; --device cpu tries the script on drawn photos" >&2
            exit 2
        fi
        if [ -z "$root" ]; then
            echo "gpu.sh: --root FOLDER, in VOC's layout, is missing" >&2
            exit 2
        fi
        ;;
    cpu)
        export CUDA_VISIBLE_DEVICES=""
        setting="vgg_tiny 64 8" count=40
        root=$out/shapes classes=()
        tiny=vgg_tiny
        "$python" -c "from pgnn_geo.datasets import Shapes; \
Shapes('$root', 'train', num_images=(20, 10), size=64)"
        run=(--network.backbone $tiny --features.size 64 --evidence.iterations 5
            --evidence.positions 500 --segment_network.backbone $tiny
            --segment_network.hidden_channels 32 --segment_train.freeze_stages 1
            --segment_train.size 64 --segment_train.crop 64 --segment_train.epochs 2
            --segment_train.workers 0)
        conv=(--quick --seconds 0.05 --only complete edges)
        ;;
    *) echo "gpu.sh: --device cuda or cpu, not $device" >&2; exit 2 ;;
esac

"$python" -m pgnn_geo.app.cli run --root "$root" --out "$out/run" "${classes[@]}" "${run[@]}"
if [ ! -d "$out/conv" ]; then # it writes what it has after each case
    "$python" "$here/conv.py" --device "$device" --out "$out/conv.part" "${conv[@]}"
    mv "$out/conv.part" "$out/conv"
fi
"$python" "$here/cost.py" --root "$root" "${classes[@]}" --out "$out/cost" --settings --features \
    --counts "$count" --count-setting "$setting" --refine par --clock wall
"$python" "$here/_gpu_table.py" "$out" | tee "$out/gpu.md"
