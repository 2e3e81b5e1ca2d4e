#!/usr/bin/env bash
# A product's story by curl alone: a scene is generated, a place in it is masked, the product is painted
# there, and the picture is set in motion; then a concept is drawn, cut out, made a 3D model and scaled to
# 100 mm for the printer. Every answer's address is the next call's input.
#
#   ./startup.sh && examples/product_story.sh [folder for the files]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=/dev/null
[ -f .env ] && . ./.env

gateway="${GATEWAY_URL:-http://127.0.0.1:${BACKEND_PORT:-8000}}"
folder="${1:-story}"
auth=()
[ -n "${GATEWAY_API_KEY:-}" ] && auth=(-H "Authorization: Bearer $GATEWAY_API_KEY")
mkdir -p "$folder"

# call TOOL BODY FIELD: the field of the result; a job that lasts longer than one wait is waited for again.
call() {
    local answer job
    answer=$(curl -sS --fail-with-body "$gateway/api/$1" "${auth[@]}" \
        -H "Content-Type: application/json" -d "$2") || { echo "$answer" >&2; return 1; }
    job=$(field job_id <<<"$answer")
    while [[ $answer == *'"status":"pending"'* || $answer == *'"status":"processing"'* ]]; do
        answer=$(curl -sS --fail-with-body "$gateway/api/$1/$job?wait=60" "${auth[@]}")
    done
    field "$3" <<<"$answer" || { echo "$answer" >&2; return 1; }
}

# The first string of that name in the JSON on stdin; of a list its first one.
field() { grep -o "\"$1\":\[\{0,1\}\"[^\"]*\"" | head -n 1 | cut -d '"' -f 4 | grep .; }

keep() {
    curl -sS --fail -o "$folder/$2" "$gateway$1" "${auth[@]}"
    echo "$folder/$2"
}

product=$(call generate '{"prompt": "a red ceramic mug, studio photograph", "width": 512, "height": 512}' image_url)
keep "$product" product.png
scene=$(call generate '{"prompt": "a cup on a wooden table by a window", "width": 768, "height": 512}' image_url)
keep "$scene" scene.png
mask=$(call mask "{\"image_url\": \"$scene\", \"object_name\": \"cup\", \"mask_dilation\": 10, \"mask_blur\": 5}" image_url)
keep "$mask" mask.png
placed=$(call inpaint "{\"scene_url\": \"$scene\", \"mask_url\": \"$mask\", \"reference_url\": \"$product\",
    \"prompt\": \"the mug of image 2 on the table of image 1\"}" image_url)
keep "$placed" placed.png
cutout=$(call background-removal "{\"image_url\": \"$product\"}" image_url)
keep "$cutout" cutout.png
call caption "{\"image_url\": \"$placed\", \"detail\": \"brief\"}" caption
video=$(call video "{\"image_url\": \"$placed\", \"prompt\": \"steam rises from the mug\", \"length\": 17}" video_url)
keep "$video" video.mp4

concept=$(call concept '{"type": "text", "prompt": "a desk lamp shaped like a heron", "styleId": "clay", "count": 1}' concept_urls)
keep "$concept" concept.png
lamp=$(call background-removal "{\"image_url\": \"$concept\"}" image_url)
keep "$lamp" lamp.png
model=$(call model3d "{\"input_image_url\": \"$lamp\", \"target_faces\": 20000}" normalized_model_url)
keep "$model" model.glb
printable=$(call model3d/rescale "{\"model_url\": \"$model\",
    \"target_dimensions\": {\"y\": 100, \"unit\": \"mm\"}}" rescaled_model_url)
keep "$printable" printable.glb
