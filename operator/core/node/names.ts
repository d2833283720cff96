/**
 * What things are called on the other side. Names derive from identities, so that a second run finds what the first one
 * made, and a re-created pod of the same name is another pod.
 */
import { virtualNodePrefix } from '../../api/labels.ts';
import { sha256Hex } from './sha256.ts';

/** Cuts to `length` and leaves what may stand before a dash in a DNS label. */
function readable(name: string, length: number): string {
  const cut = name
    .toLowerCase()
    .replace(/[^a-z0-9-]/g, '-')
    .slice(0, length)
    .replace(/^-+|-+$/g, '');
  return cut === '' ? 'x' : cut;
}

/** At the provider: `<name, cut>-<hash of the pod's UID>`, a DNS label, as it becomes a host name. */
export function remotePodName(name: string, uid: string): string {
  return `${readable(name, 40)}-${sha256Hex(`pod/${uid}`).slice(0, 20)}`;
}

/**
 * At the provider: a ConfigMap or Secret. 128 bits of hash, since tenants choose these names, and one of two namespaces that
 * share a lease must not find a name that lands on the other's object.
 */
export function remoteObjectName(kind: 'ConfigMap' | 'Secret', namespace: string, name: string): string {
  return `${readable(name, 30)}-${sha256Hex(`${kind}/${namespace}/${name}`).slice(0, 32)}`;
}

/** At the provider: the claim that stands for a claim of the consumer, which is another one when it is made anew. */
export function remoteClaimName(name: string, uid: string): string {
  return `${readable(name, 40)}-${sha256Hex(`claim/${uid}`).slice(0, 20)}`;
}

/** In the consumer's cluster: the PersistentVolume of a claim, named as Kubernetes' provisioners do. */
export const volumeName = (claimUid: string): string => `pvc-${claimUid}`;

/** In the consumer's cluster: the EndpointSlice of one pod and one Service. */
export function endpointSliceName(service: string, serviceUid: string, podUid: string, family: string): string {
  return `${readable(service, 40)}-${sha256Hex(`slice/${serviceUid}/${podUid}/${family}`).slice(0, 20)}`;
}

/** At the provider: the Service that stands for a Service of the consumer. Starts with a letter, as names of Services must. */
export function remoteServiceName(namespace: string, name: string): string {
  return `svc-${readable(name, 30)}-${sha256Hex(`service/${namespace}/${name}`).slice(0, 20)}`;
}

export { virtualNodePrefix };

/** `gpu-<lease, cut>-<hash of its UID>`, at most 63 characters, since it is also the value of kubernetes.io/hostname. */
export function virtualNodeName(leaseName: string, leaseUid: string): string {
  return `${virtualNodePrefix}${readable(leaseName, 46)}-${sha256Hex(`lease/${leaseUid}`).slice(0, 10)}`;
}
