/**
 * As much of Services and EndpointSlices as is looked at.
 * https://kubernetes.io/docs/reference/kubernetes-api/service-resources/
 */
import type { ObjectMeta, Pod } from './pod.ts';

export interface ServicePort {
  name?: string;
  /** TCP where it is absent. */
  protocol?: string;
  appProtocol?: string;
  port: number;
  targetPort?: number | string;
}

export interface Service {
  apiVersion?: string;
  kind?: string;
  metadata: ObjectMeta;
  spec: {
    type?: string;
    /** `None` for a headless one. */
    clusterIP?: string;
    ipFamilies?: string[];
    selector?: Record<string, string>;
    ports?: ServicePort[];
    publishNotReadyAddresses?: boolean;
  };
}

export interface Endpoint {
  addresses: string[];
  conditions?: { ready?: boolean | null; serving?: boolean | null; terminating?: boolean | null };
  nodeName?: string;
  targetRef?: { kind?: string; namespace?: string; name?: string; uid?: string };
}

export interface EndpointSlice {
  apiVersion?: string;
  kind?: string;
  metadata: ObjectMeta;
  addressType: string;
  endpoints?: Endpoint[] | null;
  ports?:
    | { name?: string | null; protocol?: string | null; port?: number | null; appProtocol?: string | null }[]
    | null;
}

export type Family = 'IPv4' | 'IPv6';
export const familyOf = (address: string): Family => (address.includes(':') ? 'IPv6' : 'IPv4');

export const isTcp = (port: { protocol?: string | null }): boolean => (port.protocol ?? 'TCP') === 'TCP';

/** A Service without a selector chooses nobody: somebody else keeps its endpoints. */
export function selects(service: Service, pod: Pod): boolean {
  const wanted = Object.entries(service.spec.selector ?? {});
  return wanted.length > 0 && wanted.every(([key, value]) => pod.metadata.labels?.[key] === value);
}

/** The number that stands behind a Service's port in this pod; undefined when the pod has no port of that name. */
export function targetOf(pod: Pod, port: ServicePort): number | undefined {
  const target = port.targetPort ?? port.port;
  if (typeof target === 'number') return target;
  const sidecars = (pod.spec.initContainers ?? []).filter((container) => container.restartPolicy === 'Always');
  for (const container of [...pod.spec.containers, ...sidecars]) {
    for (const { name, protocol, containerPort } of container.ports ?? []) {
      const same = (protocol ?? 'TCP') === (port.protocol ?? 'TCP');
      if (name === target && same && containerPort !== undefined) return containerPort;
    }
  }
  return undefined;
}
