#!/bin/sh
# Waits for a GpuProvider with a link, leases from it, shows log and exec of a pod there, ends the lease. Exit 0: it worked.
# Needs kubectl, a KUBECONFIG of a cluster with the operator, and a GpuProvider with via: Reverse or Relay that offers an RTX 4090;
# where no GpuProvider is of that kind there is nothing to check, and it says so.
set -eu
cd "$(dirname "$0")"
provider=$(kubectl get gpuproviders -o jsonpath='{range .items[?(@.spec.endpoint.via!="Direct")]}{.metadata.name}{"\n"}{end}' | head -n1)
if [ -z "$provider" ]; then
  echo "no GpuProvider here is reached by Reverse or Relay: nothing to check"
  exit 0
fi
kubectl wait --for=jsonpath='{.status.connection.state}'=Up "gpuprovider/$provider" --timeout=5m
kubectl wait --for=condition=Ready "gpuprovider/$provider" --timeout=5m
kubectl get gpuproviders -o wide
kubectl apply -f namespace.yaml
# Pods are refused until their namespace has its service account.
until kubectl -n nat get serviceaccount default >/dev/null 2>&1; do sleep 1; done
kubectl apply -f lease.yaml
kubectl -n nat wait --for=condition=Ready gpulease/far --timeout=15m
kubectl apply -f pod.yaml
kubectl -n nat wait --for=condition=Ready pod/hello-gpu --timeout=5m
kubectl -n nat logs hello-gpu | grep -m1 '^GPU: GPU-'
[ "$(kubectl -n nat exec hello-gpu -- echo here)" = here ]
kubectl -n nat delete pod hello-gpu
kubectl -n nat delete gpulease far --timeout=15m
kubectl delete namespace nat
echo "the lease is settled and gone"
