#!/usr/bin/env bash
# From raw competition files to a submission:  ./run_all.sh [RECIPE] [options]
#
#   ./run_all.sh                          the synthetic sample competition: nothing to download
#   ./run_all.sh RECIPE --quick           a valid submission in minutes, from a small version of the same run
#   ./run_all.sh RECIPE                   the full run; stages that are up to date are skipped
#   ./run_all.sh auto --competition NAME  a recipe chosen by the data of a competition (docs/auto.md)
#   ./run_all.sh RECIPE --from tune       options are passed to `python -m pipeline run`: ./run_all.sh RECIPE --help
#
# RECIPE is a name in pipeline/recipes or the path of your own YAML file. Raw files belong in input/<competition>/;
# `python -m pipeline download COMPETITION` downloads them from Kaggle. Results are written to submissions/.
# PIPELINE_INPUT moves input/ to another place; PIPELINE_ROOT moves everything that is read and written (default: this
# folder). The first call makes .venv. If a Python environment is active, that one is used and its torch is not replaced.

set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "${BASH_SOURCE[0]}"
    exit 0
fi

recipe=sample
if [[ $# -gt 0 && $1 != -* ]]; then
    recipe=$1
    shift
fi

# Relative paths refer to the caller's working directory, which may be another folder.
absolute() { [[ $1 == /* ]] && echo "$1" || echo "$PWD/$1"; }
[[ $recipe != *.yaml && $recipe != *.yml ]] || recipe=$(absolute "$recipe")
[[ -z ${PIPELINE_ROOT:-} ]] || export PIPELINE_ROOT=$(absolute "$PIPELINE_ROOT")
[[ -z ${PIPELINE_INPUT:-} ]] || export PIPELINE_INPUT=$(absolute "$PIPELINE_INPUT")

# The environment first: this sets PYTHON. It takes about a minute the first time and a fraction of a second later.
cd "$(dirname "${BASH_SOURCE[0]}")"
source pipeline/environment.sh --without-dev

# If the raw files of the sample competition are missing, they are drawn: a first run needs no account and no data.
#
# The stages, in the order in which data flows. Stages exchange data only through files, so each can be run alone with
# `python -m pipeline STAGE RECIPE`. A stage is skipped if its inputs, settings and code have not changed.
#
#   decode     read every raw image and mask once, so that a broken file is found now and not after hours of training
#   clean      list broken images, contradicting masks, masks that many images share, and near-duplicates
#   split      folds that keep all images of a patient, and near-duplicates, together; audited, because a leak gives a
#              score that the test set does not confirm
#   train      one model per fold, resumable; nearly all of the time is spent here
#   validate   predict the held-out images of each fold with the model that was not trained on them
#   tune       choose thresholds and minimum areas on these predictions, with a nested cross-validation estimate
#   predict    predict the test images with the same code and views as the held-out images
#   encode     run lengths in the competition's convention, checked against its sample submission before you upload
#   evaluate   score a test set whose true masks are known (Oxford-IIIT Pet), once; nothing is chosen on it
#   report     one HTML page to look at, because a score does not show what is wrong
exec "$PYTHON" -m pipeline run "$recipe" "$@"
