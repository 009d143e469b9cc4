#!/usr/bin/env bash
# Trains the recipes of this folder as arms, each with several seeds, and compares them.
#
#   configs/methods/run.sh [--task stsb|cola] [--seeds "0 1 …"] [--jobs 2] [--steps N] [--set KEY=VALUE]… [--out FOLDER] [ARM…]
#
# An ARM is a recipe's name without .toml; all of them where none is named. Runs lie in FOLDER/ARM-sSEED (by default
# runs/methods/TASK). One that is finished is left as it is, one that was interrupted goes on from its last checkpoint:
# the same command again does what is left to do. DYNALORA names the program, by default the one that was built here.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
task=stsb seeds="0 1 2 3 4 5 6 7 8 9" jobs=2 steps= out= arms=() more=()
while [ $# -gt 0 ]; do
  case $1 in
    --task | --seeds | --jobs | --steps | --out)
      [ $# -gt 1 ] || { echo "$1 needs a value" >&2; exit 2; }
      declare "${1#--}=$2"; shift 2 ;;
    --set)
      [ $# -gt 1 ] || { echo "--set needs KEY=VALUE" >&2; exit 2; }
      more+=(--set "$2"); shift 2 ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit ;;
    -*) echo "there is no $1: see --help" >&2; exit 2 ;;
    *)
      [ -f "$here/$1.toml" ] || { echo "there is no $here/$1.toml" >&2; exit 2; }
      arms+=("$1"); shift ;;
  esac
done
case $task in
  stsb) sets=() ;;
  cola) sets=(--set data.task=cola --set "data.dir=$here/../../../shared/data/glue/cola" --set evaluation.metric=matthews) ;;
  *) echo "the task is $task: it is stsb or cola" >&2; exit 2 ;;
esac
[ -z "$steps" ] || sets+=(--set "train.steps=$steps")
sets+=(${more[@]+"${more[@]}"})
out=${out:-runs/methods/$task}
if [ ${#arms[@]} -eq 0 ]; then
  for recipe in "$here"/*.toml; do arms+=("$(basename "$recipe" .toml)"); done
fi
DYNALORA=${DYNALORA:-$here/../../target/release/dynalora}
[ -x "$DYNALORA" ] || { echo "there is no $DYNALORA: cargo build --release --workspace, or set DYNALORA" >&2; exit 2; }
export DYNALORA here out

# One run: RECIPE SEED SETS…
one() {
  local arm=$1 seed=$2 run="$out/$1-s$2" how=(); shift 2
  [ -e "$run/summary.json" ] && return
  echo "$(date +%T) $arm, seed $seed"
  [ ! -d "$run" ] || how=(--resume)
  "$DYNALORA" train "$here/$arm.toml" --quiet ${how[@]+"${how[@]}"} "$@" --set "seed=$seed" --set "output=$run" >/dev/null \
    || { echo "FAILED: $arm, seed $seed ($run)" >&2; return 1; }
}
export -f one
failed=0
# Seed by seed, so that what is there when it is interrupted compares.
for seed in $seeds; do for arm in "${arms[@]}"; do printf '%s\0' "$arm $seed"; done; done |
  xargs -0 -P "$jobs" -I{} bash -c 'read -r arm seed <<<"$1"; shift; one "$arm" "$seed" "$@"' one {} ${sets[@]+"${sets[@]}"} || failed=1
finished=()
for arm in "${arms[@]}"; do for seed in $seeds; do
  if [ -e "$out/$arm-s$seed/summary.json" ]; then finished+=("$out/$arm-s$seed"); fi
done; done
[ ${#finished[@]} -eq 0 ] || "$DYNALORA" report "${finished[@]}" --names folder
exit $failed
