#!/bin/sh
# What the gateway's container runs: the database first, then the gateway.
set -eu
# several at once are no harm
python -m gateway migrate
exec python -m gateway serve
