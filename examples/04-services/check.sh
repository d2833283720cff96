#!/bin/sh
# Serves a model from a leased node, asks it from a pod of this cluster, ends the lease. Exit 0: it worked.
# Needs kubectl, a KUBECONFIG of a cluster with the operator, nodes, kube-proxy and a DNS, and a Ready GpuProvider that offers
# an RTX 4090 and carries connections to Services, as gateways do unless told otherwise.
set -eu
cd "$(dirname "$0")"
kubectl apply -f namespace.yaml
# Pods are refused until their namespace has its service account.
until kubectl -n serving get serviceaccount default >/dev/null 2>&1; do sleep 1; done
kubectl apply -f weights.yaml -f lease.yaml
kubectl -n serving wait --for=condition=Ready pod/weights --timeout=5m
kubectl -n serving wait --for=condition=Ready gpulease/serve --timeout=15m
kubectl apply -f model.yaml
kubectl -n serving rollout status deployment/model --timeout=5m
kubectl apply -f ask.yaml
kubectl -n serving wait --for=condition=Complete job/ask --timeout=5m
kubectl -n serving get pods -o wide
answer=$(kubectl -n serving logs job/ask | tail -n1)
echo "$answer"
# The question went there, the weights went there before it, and the GPU answered.
case $answer in
  'Why is the sky blue? No idea, says tiny-1b on GPU-'*) ;;
  *) exit 1 ;;
esac
leased=$(kubectl -n serving get gpulease serve -o jsonpath='{.status.nodeName}')
[ "$(kubectl -n serving get pods -l app=model -o jsonpath='{.items[*].spec.nodeName}')" = "$leased" ]
for pod in app=weights job-name=ask; do
  for node in $(kubectl -n serving get pods -l $pod -o jsonpath='{.items[*].spec.nodeName}'); do [ "$node" != "$leased" ]; done
done
kubectl delete -f ask.yaml -f model.yaml -f weights.yaml
kubectl -n serving delete gpulease serve --timeout=15m
kubectl delete namespace serving
echo "the lease is settled and gone"
