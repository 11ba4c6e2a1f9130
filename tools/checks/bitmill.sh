# Sourced by the checks: where peers lie ($P), and $BITMILL, built unless it is set.
export PEERS=${PEERS:-$HOME/.cache/bitmill-peers}
P=$PEERS
if [ -z "$BITMILL" ]; then
  cargo build --release --quiet --manifest-path "$HERE"/../../Cargo.toml
  BITMILL=${CARGO_TARGET_DIR:-$HERE/../../target}/release/bitmill
fi
