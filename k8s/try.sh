#!/usr/bin/env bash
# A training run on a Kubernetes cluster of this machine's own, from nothing: needs Docker,
# kubectl, and kind or k3d. With `era` installed: k8s/try.sh    (removed at the end; KEEP=1 keeps it)
set -euo pipefail
cd "$(dirname "$0")/.."
name=era-try era=${ERA:-.venv/bin/era} work=$(mktemp -d)
export KUBECONFIG=$work/kubeconfig
if ! command -v kind >/dev/null && command -v k3d >/dev/null; then kind=k3d; else kind=kind; fi
for program in docker kubectl "$kind" "$era"; do
    command -v "$program" >/dev/null || { echo "$program is missing" >&2; exit 2; }
done
create() {
    if [ $kind = kind ]; then kind create cluster --name "$name"; return; fi
    k3d cluster create "$name" --kubeconfig-update-default=false
    k3d kubeconfig get "$name" >"$KUBECONFIG"
}
load() { if [ $kind = kind ]; then kind load docker-image "$1" --name "$name"; else k3d image import "$1" -c "$name"; fi; }
delete=(kind delete cluster --name "$name")
[ $kind = kind ] || delete=(k3d cluster delete "$name")
forward=
clean_up() {
    [ -z "$forward" ] || kill "$forward" 2>/dev/null || true
    if [ -n "${KEEP:-}" ]; then
        echo "kept: export KUBECONFIG=$KUBECONFIG; ${delete[*]}" >&2
    else
        "${delete[@]}"
        rm -rf "$work"
    fi
}
trap clean_up EXIT

# TORCH_INDEX_URL=... in the environment: an image without CUDA (docs/operations.md).
docker build -t era --build-arg REVISION="$(git describe --always --dirty)" --build-arg TORCH_INDEX_URL .
create
load era
operator="github.com/ray-project/kuberay/ray-operator/config/default?ref=${KUBERAY:-v1.6.2}"
kubectl apply --server-side -k "$operator" # its schemas are too large for a client-side apply
kubectl rollout status deployment/kuberay-operator --timeout=300s
kubectl create namespace era
kubectl -n era create secret generic era-s3 --from-literal=AWS_ACCESS_KEY_ID=era \
    --from-literal=AWS_SECRET_ACCESS_KEY="$(openssl rand -hex 20)"
kubectl apply -k k8s/overlays/local
kubectl -n era rollout status deployment/era-s3 --timeout=300s
kubectl -n era delete raycluster era # the interactive cluster: its processors are the job's

# A port that the machine chooses: another server may have 9000.
kubectl -n era port-forward service/era-s3 :9000 >"$work/forward.log" &
forward=$!
for _ in $(seq 30); do grep -q Forwarding "$work/forward.log" && break; sleep 1; done
port=$(sed -nE 's/^Forwarding from 127\.0\.0\.1:([0-9]+) .*/\1/p' "$work/forward.log")
secret() { kubectl -n era get secret era-s3 -o "jsonpath={.data.$1}" | base64 -d; }
AWS_ACCESS_KEY_ID=$(secret AWS_ACCESS_KEY_ID) AWS_SECRET_ACCESS_KEY=$(secret AWS_SECRET_ACCESS_KEY)
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_ENDPOINT_URL=http://127.0.0.1:$port
export AWS_REQUEST_CHECKSUM_CALCULATION=when_required AWS_RESPONSE_CHECKSUM_VALIDATION=when_required
"$era" synthesize --photos bundled --dest "$work/pairs" --pairs 24
"$era" preprocess --dataset dpdd --source "$work/pairs" --dest s3://era/shards
"$era" submit train --kubernetes --overlay local --image era --config tiny \
    run.root=s3://era/runs data.train=s3://era/shards/train scaling.workers=1 train.steps=100
"$era" runs pull s3://era/runs/tiny --to runs/try
echo "the trained network: runs/try" >&2
