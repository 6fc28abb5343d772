# Sourced by the checks: where things lie, and how a check says that it could not run.
#
# A check is one script. It runs the same on a laptop and in CI, from any directory, and ends with
#   0   what it shows holds
#   77  it could not run here; its last line is `skipped: REASON`
#   any other status: it failed, and its output says how.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
root=$PWD
target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$root/$target ;; esac
export CARGO_TARGET_DIR=$target
export CARGO_TERM_COLOR=never
# On a machine that throws its tree away afterwards nothing is built twice, and disks are small.
[ "${CI:-}" != true ] || export CARGO_INCREMENTAL=0
work=$target/ci
mkdir -p "$work/logs"

# Removes a target directory that no other check uses, when CI throws it away anyway.
use_once() {
    [ "${CI:-}" != true ] || trap "rm -rf '$1'" EXIT
}

# Builds for models and mutants, with the debug assertions on, in one target directory. More optimisation
# costs more time than it saves.
use_model_builds() {
    target=$target/models
    mkdir -p "$target"
    export CARGO_TARGET_DIR=$target CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=none
    export CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true
    export CARGO_PROFILE_RELEASE_OPT_LEVEL=1
}

# RUSTFLAGS of such a build: the environment, FERRITE_MUTANT, says which step is left out, if any.
model_flags() {
    echo "$*${*:+ }--cfg ferrite_mutant=\"chosen\""
}

skip() {
    echo "skipped: $*"
    exit 77
}
