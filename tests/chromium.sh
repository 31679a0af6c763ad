# Read by the scripts that look at pages or take pictures of them.

chromium_in() { # DIR OPTIONS... URL: a browser that nobody has used before and that wants nothing from the internet; its files in DIR
    local dir=$1
    shift
    rm -rf "$dir"
    timeout 120 chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
        --disable-component-update --disable-sync --user-data-dir="$dir" --hide-scrollbars "$@"
}
