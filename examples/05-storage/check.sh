#!/bin/sh
# Applies the example, waits until one Job has read what another wrote, ends the lease, and looks that it said what is lost.
# Exit 0: it worked.
# Needs kubectl, a KUBECONFIG of a cluster with the operator and crds/storage, and a Ready GpuProvider that offers an RTX 4090
# and storage; where it offers none there is nothing to check, and it says so.
set -eu
cd "$(dirname "$0")"
# Of an event about the claim or the lease, what it says.
told() {
  kubectl -n storing get events --field-selector "involvedObject.name=$1,reason=$2" \
    -o jsonpath='{range .items[*]}{.message}{"\n"}{end}'
}
finish() {
  kubectl delete namespace storing --timeout=5m
  echo "the lease is settled and gone"
}
kubectl apply -f namespace.yaml
# Pods are refused until their namespace has its service account.
until kubectl -n storing get serviceaccount default >/dev/null 2>&1; do sleep 1; done
kubectl apply -f lease.yaml
kubectl -n storing wait --for=condition=Ready gpulease/learn --timeout=15m
kubectl apply -f claim.yaml -f train.yaml
for _ in $(seq 300); do
  [ "$(kubectl -n storing get job train -o jsonpath='{.status.succeeded}')" = 1 ] && break
  if told checkpoints ProvisioningFailed | grep 'offers no storage'; then
    kubectl delete -f train.yaml -f claim.yaml
    kubectl -n storing delete gpulease learn --timeout=15m
    finish
    echo "the provider of this lease offers no storage: nothing to check"
    exit 0
  fi
  sleep 1
done
kubectl -n storing wait --for=condition=Complete job/train --timeout=1s
kubectl apply -f evaluate.yaml
kubectl -n storing wait --for=condition=Complete job/evaluate --timeout=5m
kubectl -n storing get pvc
kubectl -n storing logs job/evaluate | grep 'found step 3 by train-'
kubectl delete -f train.yaml -f evaluate.yaml

kubectl -n storing delete gpulease learn --timeout=15m
kubectl -n storing wait --for=condition=DataLost pvc/checkpoints --timeout=2m
told learn Released | grep 'What this claim stores is lost with it: storing/checkpoints'
told checkpoints LeaseEnding | grep 'What this claim stores is lost'
kubectl -n storing get pvc checkpoints -o jsonpath='{.status.conditions[?(@.type=="DataLost")].message}{"\n"}'
kubectl -n storing delete pvc checkpoints --timeout=2m
finish
