#!/usr/bin/env bash
# From raw competition files to a submission:  ./run_all.sh [RECIPE] [options]
#
#   ./run_all.sh                          the synthetic sample competition: nothing to download
#   ./run_all.sh RECIPE --quick           a valid submission in minutes, from a small version of the same run
#   ./run_all.sh RECIPE                   all of it; what is up to date already is not done again
#   ./run_all.sh RECIPE --from tune       options go to `python -m pipeline run`: ./run_all.sh RECIPE --help
#
# RECIPE is a name in pipeline/recipes or a YAML file of your own. Raw files lie in input/<competition>/, where
# `python -m pipeline download COMPETITION` gets them from Kaggle; results go to submissions/. PIPELINE_INPUT
# puts input/ elsewhere, PIPELINE_ROOT all that is read and written; default: this folder.
# The first call makes .venv, unless a Python environment is active: that one is used, and its torch never replaced.

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

# Paths mean what they mean to the caller, who may stand in another folder.
absolute() { [[ $1 == /* ]] && echo "$1" || echo "$PWD/$1"; }
[[ $recipe != *.yaml && $recipe != *.yml ]] || recipe=$(absolute "$recipe")
[[ -z ${PIPELINE_ROOT:-} ]] || export PIPELINE_ROOT=$(absolute "$PIPELINE_ROOT")
[[ -z ${PIPELINE_INPUT:-} ]] || export PIPELINE_INPUT=$(absolute "$PIPELINE_INPUT")

# The environment first: sets PYTHON. A minute or so the first time, a fraction of a second afterwards.
cd "$(dirname "${BASH_SOURCE[0]}")"
source pipeline/environment.sh --without-dev

# The sample competition is drawn where it is not there: a first run needs no account and no data.
#
# The stages, in the order data flows. Each reads and writes files only, so each can be run alone, as
# `python -m pipeline STAGE RECIPE`, and a stage whose inputs, settings and code are unchanged is skipped.
#
#   decode     read every raw image and mask once, so that a broken file shows now and not in hour three of training
#   clean      list what is wrong: broken images, masks that contradict each other, one mask on many images, duplicates
#   split      folds that keep a patient and near-duplicates on one side, audited: a leak makes a score that the test
#              set takes back
#   train      one model per fold, resumable; nearly all of the time goes here
#   validate   predict the images that each fold holds out, by the models that have not seen them
#   tune       thresholds and minimum sizes on these predictions, with an estimate that has not seen them
#   predict    predict the test images, by the code and the views that were validated: what is tuned is what is submitted
#   encode     run lengths in the competition's own convention, checked against its sample submission before you upload
#   evaluate   score a test set whose truth is known (Oxford-IIIT Pet): once, at the end, nothing is chosen on it
#   report     one page to look at, because a score does not show what is wrong
exec "$PYTHON" -m pipeline run "$recipe" "$@"
