/**
 * What a pod is called inside: as a kubelet of the consumer's would call it, though the pod has another name and namespace
 * at the provider. Where a label will not do, the whole name goes as `hostnameOverride` (Kubernetes 1.35 and later; older
 * providers fall back to `hostname`).
 */
import { Refused } from './field-table.ts';
import type { Pod } from './pod.ts';

/** The kernel takes 64 bytes, one of them the last zero. */
const most = 63;

const cut = (name: string): string => name.slice(0, most).replace(/[-.]+$/, '');

export function hostNames(pod: Pod, clusterDomain = 'cluster.local'): { hostname: string; hostnameOverride?: string } {
  const { spec, metadata } = pod;
  const { hostnameOverride, subdomain, setHostnameAsFQDN } = spec as Record<string, unknown>;
  const hostname = spec.hostname || cut(metadata.name.replaceAll('.', '-'));
  if (typeof hostnameOverride === 'string' && hostnameOverride !== '') return { hostname, hostnameOverride };
  const inside = spec.hostname || cut(metadata.name);
  if (setHostnameAsFQDN === true && typeof subdomain === 'string' && subdomain !== '') {
    const whole = `${inside}.${subdomain}.${metadata.namespace ?? ''}.svc.${clusterDomain}`;
    if (whole.length > most)
      throw new Refused(
        'FieldNotSupported',
        `spec.setHostnameAsFQDN: ${whole} is longer than the ${most} characters that a host name may have`,
      );
    return { hostname, hostnameOverride: whole };
  }
  return inside === hostname ? { hostname } : { hostname, hostnameOverride: inside };
}
