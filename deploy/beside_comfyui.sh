#!/usr/bin/env bash
# Keeps ComfyUI running (SIMULATOR=1: the simulator in its place) while the command given runs
# beside it, and ends with that command and its status.
set -euo pipefail

APP="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$APP${PYTHONPATH:+:$PYTHONPATH}"
export COMFYUI_API_URL="${COMFYUI_API_URL:-http://127.0.0.1:8188}"
export COMFYUI_PATH="${COMFYUI_PATH:-${WORKSPACE:-/workspace}/ComfyUI}"
export MODELS_PATH="${MODELS_PATH:-${WORKSPACE:-/workspace}/models}"
AGAIN_S="${COMFYUI_AGAIN_S:-2}"

[ "$#" -gt 0 ] || {
    printf 'Usage: beside_comfyui.sh command…\n' >&2
    exit 2
}
place="${COMFYUI_API_URL#*://}"
place="${place%%/*}"
PORT="${place##*:}"
[[ "$place" =~ ^(127\.0\.0\.1|localhost):[0-9]+$ ]] || {
    printf 'COMFYUI_API_URL must be http://127.0.0.1 and a port: ComfyUI runs here, for this container alone.\n' >&2
    exit 2
}

if [ "${SIMULATOR:-}" = 1 ]; then
    COMFYUI=(python -m gpu_server.simulator --host 127.0.0.1 --port "$PORT" --dir "$COMFYUI_PATH")
else
    # ComfyUI ends at once where its folder has no custom_nodes
    mkdir -p "$COMFYUI_PATH"/{custom_nodes,input,models,output,user}
    mkdir -p "$MODELS_PATH" || printf 'There is no folder %s, and none can be made.\n' "$MODELS_PATH" >&2
    paths="$(mktemp)"
    sed "s|^  base_path: .*|  base_path: $MODELS_PATH|" "$APP/deploy/extra_model_paths.yaml" >"$paths"
    # shellcheck disable=SC2206  # COMFYUI_ARGS is a list of words
    COMFYUI=("${COMFYUI_PYTHON:-python}" "${COMFYUI_CODE:-/opt/comfyui}/main.py"
        --listen 127.0.0.1 --port "$PORT" --base-directory "$COMFYUI_PATH"
        --extra-model-paths-config "$paths" --disable-auto-launch ${COMFYUI_ARGS:-})
fi

# shellcheck disable=SC2329  # the trap below calls it
stop_comfyui() { # told again and again: a process that has only just been forked may miss it
    local _ pids
    mapfile -t pids < <(jobs -p)
    for _ in {1..50}; do
        kill -TERM "${pids[@]}" 2>/dev/null || exit 0
        sleep 0.1
    done
    kill -KILL "${pids[@]}" 2>/dev/null || true
    exit 0
}

keep_comfyui() { # what runs beside it notices its death, and goes on when it is back
    local status comfyui
    trap stop_comfyui TERM
    while true; do
        "${COMFYUI[@]}" &
        comfyui=$!
        status=0
        wait "$comfyui" || status=$?
        printf 'ComfyUI ended with %s; it is started again in %s s.\n' "$status" "$AGAIN_S" >&2
        sleep "$AGAIN_S" &
        comfyui=$!
        wait "$comfyui" || true
    done
}

keep_comfyui &
keeper=$!
"$@" &
command=$!
trap 'kill -TERM "$command" 2>/dev/null || true' TERM INT
status=0
wait "$command" || status=$?
# A signal ends the waiting, not the command.
while kill -0 "$command" 2>/dev/null; do wait "$command" || true; done
last=0
wait "$command" 2>/dev/null || last=$?
# 127: its status was told before, by the first wait
[ "$last" -eq 127 ] || status="$last"
kill -TERM "$keeper" 2>/dev/null || true
wait "$keeper" || true
rm -f "${paths:-}"
exit "$status"
