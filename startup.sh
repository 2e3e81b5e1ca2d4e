#!/usr/bin/env bash
# Starts, stops and shows the gateway, the GPU service and, where there is no ComfyUI, the simulator.
# Every setting can be overridden from the environment; docs/settings.md and docs/operate.md list them.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ -n "${RUNPOD_POD_ID:-}" ]; then WORKSPACE="${WORKSPACE:-/workspace}"; fi
WORKSPACE="${WORKSPACE:-$ROOT}"
case "$WORKSPACE" in /*) ;; *) WORKSPACE="$PWD/$WORKSPACE" ;; esac
export WORKSPACE
LOGS="$WORKSPACE/logs"
ENV_FILE="$WORKSPACE/.env"
SIMULATOR_PORT=8288
SERVICES="simulator gpu_server backend"

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    RED=$'\e[31m' GREEN=$'\e[32m' YELLOW=$'\e[33m' BLUE=$'\e[34m' BOLD=$'\e[1m' PLAIN=$'\e[0m'
else
    RED='' GREEN='' YELLOW='' BLUE='' BOLD='' PLAIN=''
fi

say() { # colour, text
    local stamp
    stamp="$(date '+%Y-%m-%d %H:%M:%S')"
    printf '%s%s%s  %s\n' "$1" "$stamp" "$PLAIN" "$2"
    if [ -d "$LOGS" ]; then printf '%s  %s\n' "$stamp" "$2" >>"$LOGS/startup.log"; fi
}
info() { say "$BLUE" "$1"; }
good() { say "$GREEN" "$1"; }
warn() { say "$YELLOW" "$1"; }
die() {
    say "$RED" "$1" >&2
    exit 1
}

load_env() { # the environment wins over .env
    [ -e "$ENV_FILE" ] || return 0
    [ -f "$ENV_FILE" ] && [ -r "$ENV_FILE" ] ||
        die "$ENV_FILE cannot be read: it must be a file that belongs to $(id -un)."
    local line key value
    # a pod has a key of its own in the environment, good for the pod alone; "" is none, as below
    if [ -n "${RUNPOD_POD_ID:-}" ] && grep -Eq "^RUNPOD_API_KEY=[\"']?[^\"'[:space:]]" "$ENV_FILE"; then
        unset RUNPOD_API_KEY
    fi
    while IFS= read -r line || [ -n "$line" ]; do
        case "$line" in '' | '#'*) continue ;; esac
        key="${line%%=*}" value="${line#*=}"
        [[ "$key" =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || continue
        value="${value%$'\r'}"
        if [[ "$value" == \"*\" || "$value" == \'*\' ]]; then value="${value:1:${#value}-2}"; fi
        # an empty value stands for none, as it does for the services
        if [ -n "$value" ] && [ -z "${!key:-}" ]; then export "$key=$value"; fi
    done <"$ENV_FILE"
}

new_secret() { "$VENV/bin/python" -c 'import secrets; print(secrets.token_urlsafe(32))'; }

ensure_secrets() { # made once, kept in .env, the API key printed once
    local name value
    for name in GATEWAY_API_KEY GPU_SERVICE_TOKEN; do
        if [ -n "${!name:-}" ]; then export "${name?}" && continue; fi
        value="$(new_secret)"
        (umask 077 && touch "$ENV_FILE") || die "$ENV_FILE cannot be written."
        chmod 600 "$ENV_FILE"
        if [ -n "$(tail -c 1 "$ENV_FILE")" ]; then printf '\n' >>"$ENV_FILE"; fi
        printf '%s=%s\n' "$name" "$value" >>"$ENV_FILE"
        export "$name=$value"
        if [ "$name" = GATEWAY_API_KEY ]; then
            good "Made an API key. It is kept in $ENV_FILE and shown only now:"
            # not through say: no key goes into a log
            printf '    %s%s%s\n' "$BOLD" "$value" "$PLAIN"
        fi
    done
}

answers() { # url; on this machine, so never through a proxy
    "$VENV/bin/python" -c 'import sys, urllib.request as r
r.build_opener(r.ProxyHandler({})).open(sys.argv[1], timeout=2).read(1)' "$1" >/dev/null 2>&1
}

listens() { # url
    "$VENV/bin/python" -c 'import sys, socket, urllib.parse as p
u = p.urlsplit(sys.argv[1]); socket.create_connection((u.hostname, u.port), timeout=1)' \
        "$1" >/dev/null 2>&1
}

port_of() { # http://host:port[/path] -> port
    local rest="${1#*://}"
    rest="${rest%%/*}"
    if [[ "$rest" == *:* ]]; then printf '%s' "${rest##*:}"; else printf '80'; fi
}

here() { # an address to listen on -> the address to reach it at
    case "$1" in
        0.0.0.0 | :: | localhost) printf '127.0.0.1' ;;
        *:*) printf '[%s]' "$1" ;;
        *) printf '%s' "$1" ;;
    esac
}

gpu_is_named() { # do BACKENDS or TOOL_BACKENDS send anything to a GPU service?
    local word words="${BACKENDS:-gpu,runpod},${TOOL_BACKENDS:-}"
    words="${words//[[:space:]]/}"
    for word in ${words//[,|]/ }; do
        case "${word##*=}" in runpod | runpod:*) ;; *) return 0 ;; esac
    done
    return 1
}

configure() {
    load_env
    STOP_SECONDS="${STOP_SECONDS:-20}"
    if [ -n "${RUNPOD_POD_ID:-}" ]; then
        # RunPod's own, not somebody's wish to use serverless: the gateway would ask for the endpoint
        if [ -z "${RUNPOD_ENDPOINT_ID:-}${RUNPOD_ENDPOINTS:-}" ]; then unset RUNPOD_API_KEY; fi
        export BACKEND_HOST="${BACKEND_HOST:-0.0.0.0}"
        export MODELS_PATH="${MODELS_PATH:-$WORKSPACE/models}"
        # the first start after a pod's restart reads every package over the network
        START_SECONDS="${START_SECONDS:-180}"
    fi
    START_SECONDS="${START_SECONDS:-60}"
    # A laptop is not a server: off a pod nothing listens beyond this machine unless asked to.
    export BACKEND_HOST="${BACKEND_HOST:-127.0.0.1}" BACKEND_PORT="${BACKEND_PORT:-8000}"
    # The gateway on this machine is the only one that talks to this GPU service.
    export GPU_SERVER_HOST="${GPU_SERVER_HOST:-127.0.0.1}"
    export GPU_SERVER_PORT="${GPU_SERVER_PORT:-8001}"
    BACKEND_URL="http://$(here "$BACKEND_HOST"):$BACKEND_PORT"
    GPU_URL="http://$(here "$GPU_SERVER_HOST"):$GPU_SERVER_PORT"
    export GPU_SERVICE_URL="${GPU_SERVICE_URL:-$GPU_URL}"
    GPU_HERE=no
    gpu_is_named || return 0
    case ",$GPU_SERVICE_URL," in
        *"$GPU_URL"[,/]* | *"//localhost:$GPU_SERVER_PORT"[,/]*) GPU_HERE=yes ;;
    esac
}

choose_comfyui() { # a stand-in only when nothing says that there is, or will be, a real ComfyUI
    USE_SIMULATOR=no
    [ "$GPU_HERE" = yes ] || return 0
    if [ "${SIMULATOR:-}" = 1 ]; then
        USE_SIMULATOR=yes
        export COMFYUI_API_URL="${COMFYUI_API_URL:-http://127.0.0.1:$SIMULATOR_PORT}"
        SIMULATOR_PORT="$(port_of "$COMFYUI_API_URL")"
    elif [ -z "${COMFYUI_API_URL:-}" ]; then
        if [ -z "${RUNPOD_POD_ID:-}" ] && [ ! -d "$WORKSPACE/ComfyUI" ] &&
            ! answers http://127.0.0.1:8188/queue; then
            USE_SIMULATOR=yes
            export COMFYUI_API_URL="http://127.0.0.1:$SIMULATOR_PORT"
        else
            export COMFYUI_API_URL=http://127.0.0.1:8188
        fi
    fi
    if [ -z "${COMFYUI_PATH:-}" ] && [ "$USE_SIMULATOR" = yes ]; then
        export COMFYUI_PATH="$WORKSPACE/data/simulator"
    elif [ -z "${COMFYUI_PATH:-}" ] && [ -d "$WORKSPACE/ComfyUI" ]; then
        export COMFYUI_PATH="$WORKSPACE/ComfyUI"
    fi
}

find_python() {
    local candidate
    # shellcheck disable=SC2086  # a list where PYTHON is not set, one word where it is
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            printf '%s' "$candidate"
            return 0
        fi
    done
    return 1
}

choose_venv() { # an environment that is not ours, or holds torch, is left alone
    VENV="$WORKSPACE/venv"
    if [ -d "$VENV" ] && { [ ! -f "$VENV/.genmedia" ] ||
        compgen -G "$VENV/lib/python*/site-packages/torch" >/dev/null; }; then
        VENV="$WORKSPACE/venv-gateway"
    fi
}

venv_has_its_python() { # a pod's volume outlives the system whose Python the environment was made with
    "$VENV/bin/python" -c 'import os, sysconfig, sys
sys.exit(not os.path.isdir(os.path.join(sysconfig.get_path("purelib"), "uvicorn")))' 2>/dev/null
}

ensure_python() {
    local lock="$ROOT/requirements/run.txt" want python stale=no
    want="$(cksum <"$lock")"
    choose_venv
    if [ "$(cat "$VENV/.genmedia" 2>/dev/null)" = "$want" ] && venv_has_its_python; then
        return 0
    fi
    if [ -f "$VENV/.genmedia" ] && ! venv_has_its_python; then stale=yes; fi
    mkdir -p "$VENV" && touch "$VENV/.genmedia"
    python="$(find_python)" || die "No Python 3.11 or newer with venv was found${PYTHON:+ at $PYTHON}. On Debian or Ubuntu: \
apt-get install python3 python3-venv; on macOS: brew install python@3.12; or set PYTHON=/path/to/python3."
    info "Preparing $VENV with $("$python" --version) (once, about a minute)"
    # venv leaves links of a Python that is gone as they are
    if [ "$stale" = yes ]; then find "$VENV/" -mindepth 1 ! -name .genmedia -delete; fi
    "$python" -m venv "$VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
        -r "$lock" >>"$LOGS/startup.log" 2>&1 ||
        die "Installing the dependencies failed; the last lines of $LOGS/startup.log say why."
    printf '%s' "$want" >"$VENV/.genmedia"
}

pid_file() { printf '%s/%s.pid' "$WORKSPACE" "$1"; }
log_file() { printf '%s/%s.log' "$LOGS" "$1"; }

command_of() { # what the process of a service looks like, so that a reused pid is not mistaken for it
    case "$1" in
        backend) printf -- '-m gateway serve ' ;;
        gpu_server) printf -- '-m gpu_server ' ;;
        simulator) printf -- '-m gpu_server.simulator ' ;;
        extra) cat "$LOGS/extra.cmd" 2>/dev/null || printf 'never started' ;;
    esac
}

running_pid() { # service -> its pid, or failure
    local pid file
    file="$(pid_file "$1")"
    [ -f "$file" ] || return 1
    pid="$(cat "$file")"
    [[ "$pid" =~ ^[0-9]+$ ]] || return 1
    kill -0 "$pid" 2>/dev/null || return 1
    # after a pod's restart the numbers begin anew, and one service gets another's
    [[ "$(command_line "$pid") " == *"$(command_of "$1")"* ]] || return 1
    printf '%s' "$pid"
}

command_line() { # pid; slim images have no ps, macOS has no /proc
    if [ -r "/proc/$1/cmdline" ]; then
        tr '\0' ' ' <"/proc/$1/cmdline"
    else
        ps -ww -p "$1" -o command=
    fi
}

url_of() {
    case "$1" in
        backend) printf '%s/livez' "$BACKEND_URL" ;;
        gpu_server) printf '%s/health' "$GPU_URL" ;;
        simulator) printf 'http://127.0.0.1:%s/_sim' "$SIMULATOR_PORT" ;;
    esac
}

spawn() { # service, command…
    local name="$1" log
    shift
    log="$(log_file "$name")"
    (
        cd "$WORKSPACE"
        # a process group of its own: Ctrl-C at the terminal ends this script, not the services
        set -m
        PYTHONPATH="$ROOT" nohup "$@" </dev/null >>"$log" 2>&1 9>&- &
        printf '%s\n' "$!" >"$(pid_file "$name")"
    )
    url_of "$name" >"$LOGS/$name.url"
}

wait_until_up() { # service
    local name="$1" deadline=$((SECONDS + START_SECONDS)) url
    url="$(url_of "$name")"
    until answers "$url"; do
        if ! running_pid "$name" >/dev/null; then
            tail -n 15 "$(log_file "$name")" >&2 || true
            die "$name ended while starting; its log is $(log_file "$name")"
        fi
        [ "$SECONDS" -lt "$deadline" ] ||
            die "$name does not answer at $url after $START_SECONDS s; ./startup.sh doctor says what is amiss"
        sleep 0.2
    done
}

start_service() { # service, command…
    local name="$1" pid
    shift
    if pid="$(running_pid "$name")"; then
        good "$name already runs (pid $pid)"
        if [ "$(cat "$LOGS/$name.url" 2>/dev/null)" != "$(url_of "$name")" ]; then
            warn "$name was started with other settings; ./startup.sh restart applies these"
        fi
        return 0
    fi
    if listens "$(url_of "$name")"; then
        die "Something else already listens where $name belongs ($(url_of "$name")). Stop it, or choose other ports \
(BACKEND_PORT, GPU_SERVER_PORT, COMFYUI_API_URL)."
    fi
    spawn "$name" "$@"
    wait_until_up "$name"
    good "$name is up (pid $(running_pid "$name"), log $(log_file "$name"))"
}

start_extra() {
    [ -n "${EXTRA_SERVICE_CMD:-}" ] || return 0
    if running_pid extra >/dev/null; then
        good "extra service already runs (pid $(running_pid extra))"
        return 0
    fi
    printf '%s' "$EXTRA_SERVICE_CMD" >"$LOGS/extra.cmd"
    spawn extra bash -c "exec $EXTRA_SERVICE_CMD"
    sleep 0.5
    running_pid extra >/dev/null || die "EXTRA_SERVICE_CMD ended at once; see $(log_file extra)"
    good "extra service is up (pid $(running_pid extra))"
}

stop_service() { # asked first, killed when it does not listen
    local name="$1" pid deadline
    if ! pid="$(running_pid "$name")"; then
        rm -f "$(pid_file "$name")"
        return 0
    fi
    kill -TERM "$pid" 2>/dev/null || true
    deadline=$((SECONDS + STOP_SECONDS))
    while running_pid "$name" >/dev/null; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            warn "$name did not stop within $STOP_SECONDS s and is killed"
            kill -KILL "$pid" 2>/dev/null || true
            sleep 0.2
        fi
        sleep 0.1
    done
    rm -f "$(pid_file "$name")"
    good "$name stopped"
}

lock() { # one startup.sh at a time works on a workspace
    mkdir -p "$LOGS" "$WORKSPACE/data" 2>/dev/null ||
        die "$WORKSPACE cannot be written: choose another folder by WORKSPACE."
    exec 9>"$LOGS/.startup.lock"
    if command -v flock >/dev/null 2>&1; then
        flock -w 300 9 || die "Another startup.sh has been at work here for five minutes."
    fi
}

gateway() { # python -m gateway …, in the workspace
    (cd "$WORKSPACE" && PYTHONPATH="$ROOT" "$VENV/bin/python" -m gateway "$@" 9>&-)
}

start_all() {
    lock
    load_env
    ensure_python
    configure
    ensure_secrets
    choose_comfyui
    if ! gpu_is_named; then
        info "Work goes to RunPod alone, as BACKENDS says; no GPU service is started here"
    elif [ "$GPU_HERE" = no ]; then
        info "Using the GPU service at $GPU_SERVICE_URL; none is started here"
    elif [ "$USE_SIMULATOR" = yes ]; then
        warn "The SIMULATOR stands in for ComfyUI: its pictures are drawn, not generated."
        start_service simulator "$VENV/bin/python" -m gpu_server.simulator \
            --host 127.0.0.1 --port "$SIMULATOR_PORT" --dir "$COMFYUI_PATH"
    else
        info "Using ComfyUI at $COMFYUI_API_URL"
        answers "$COMFYUI_API_URL/queue" ||
            warn "ComfyUI does not answer at $COMFYUI_API_URL yet: jobs wait until it does"
    fi
    if [ "$GPU_HERE" = yes ]; then start_service gpu_server "$VENV/bin/python" -m gpu_server; fi
    if ! running_pid backend >/dev/null; then
        if ! gateway migrate >>"$(log_file backend)" 2>&1; then
            tail -n 3 "$(log_file backend)" >&2
            die "The database could not be prepared; $(log_file backend) says why, ./startup.sh doctor what to do."
        fi
    fi
    start_service backend "$VENV/bin/python" -m gateway serve
    start_extra
    exec 9>&-
}

status_table() {
    local name pid state
    printf '\n%s%-12s %-9s %-8s %s%s\n' "$BOLD" SERVICE STATE PID ADDRESS "$PLAIN"
    for name in $SERVICES extra; do
        if pid="$(running_pid "$name")"; then state=running; else state=stopped pid=-; fi
        [[ "$state $name" =~ ^stopped\ (simulator|extra)$ ]] && continue
        printf '%-12s %-9s %-8s %s\n' "$name" "$state" "$pid" \
            "$(if [ "$state" = running ]; then cat "$LOGS/$name.url" 2>/dev/null; fi)"
    done
    printf '\n'
}

stop_all() {
    lock
    configure
    local name stopped=no
    for name in extra backend gpu_server simulator; do
        if running_pid "$name" >/dev/null; then stopped=yes; fi
        stop_service "$name"
    done
    [ "$stopped" = yes ] || info "Nothing was running."
    exec 9>&-
}

show_logs() {
    local files=() name
    for name in ${1:-$SERVICES}; do
        if [ -f "$(log_file "$name")" ]; then files+=("$(log_file "$name")"); fi
    done
    [ "${#files[@]}" -gt 0 ] || die "There is no log of ${1:-any service} in $LOGS yet."
    tail -n 50 -F "${files[@]}"
}

case "${1:-start}" in
    start)
        start_all
        status_table
        info "Try it: ./startup.sh demo   Read it: $BACKEND_URL/docs"
        ;;
    demo)
        start_all
        gateway demo --url "$BACKEND_URL" --out "$WORKSPACE/demo"
        ;;
    stop) stop_all ;;
    restart)
        stop_all
        start_all
        status_table
        ;;
    status)
        configure
        status_table
        ;;
    logs) show_logs "${2:-}" ;;
    doctor)
        configure
        choose_venv
        [ -x "$VENV/bin/python" ] || die "Nothing is installed here yet: run ./startup.sh first."
        gateway doctor "${@:2}"
        ;;
    *)
        printf 'Usage: ./startup.sh [start|stop|restart|status|logs [service]|doctor|demo]\n' >&2
        case "${1:-}" in -h | --help | help) ;; *) exit 2 ;; esac
        ;;
esac
