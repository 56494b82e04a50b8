#!/usr/bin/env bash
# with_torch.sh ROOT SCRIPT ARGUMENTS...: the script under the Python that has torch and the
# binding; 77 (skipped) where it was never made.
set -euo pipefail
python="${REGROUP_TORCH_VENV:-$1/build/torch/venv}/bin/python"
shift
if [[ ! -x "$python" ]]; then
  echo "skipped: no $python; ./dev test makes it where pip can reach torch"
  exit 77
fi
exec "$python" "$@"
