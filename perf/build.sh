# Sourced with the name of a program of perf/: builds it and the programs of a cluster (unless NO_BUILD is set).
[ -n "${NO_BUILD:-}" ] || cargo build --release -q -p pstorage-tools -p mds -p engine -p client -p perf --bin pstorage --bin pstorage-mdsd \
    --bin pstorage-csd --bin pstorage-mount --bin "$1"
