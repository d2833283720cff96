/**
 * The consumer's Services at the provider: for each a Service without a selector in the tenant's namespace, whose endpoints
 * are a tunnel's listeners in the gateway. Their addresses are ordinary ones of the provider's cluster, so pods need nothing
 * to reach them but what every pod has.
 */
import type { ServicesRequest } from '../../api/gateway.ts';
import { annotations, sliceManager, labels as words } from '../../api/labels.ts';
import { remoteServiceName } from '../node/names.ts';
import { type EndpointSlice, familyOf, type Service } from '../node/service.ts';
import { tenantLabels } from './admit-pod.ts';

export interface TenantPort {
  readonly name?: string;
  readonly port: number;
}

/** One of the consumer's Services, as the tenant's namespace has it. */
export interface TenantService {
  readonly namespace: string;
  readonly name: string;
  readonly ports: readonly TenantPort[];
}

/** A Service must have a port. One that is not there yet at the consumer has this one, which nobody listens on. */
const placeholder = { name: 'gpulease-none', port: 9 } as const;

/** Also of a Service that has several ports without names, which Kubernetes would not allow. */
const portName = (port: TenantPort): string => port.name ?? `port-${port.port}`;

export const keyOfTenantService = ({ namespace, name }: { namespace: string; name: string }, port: number): string =>
  `${name}.${namespace}:${port}`;

export function tenantServiceObject(
  wanted: ServicesRequest['services'][number],
  context: { readonly namespace: string; readonly leaseId: string; readonly family: 'IPv4' | 'IPv6' },
): Service {
  const ports = distinct(wanted.ports);
  return {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: {
      name: remoteServiceName(wanted.namespace, wanted.name),
      namespace: context.namespace,
      labels: tenantLabels(context.leaseId),
      annotations: { [annotations.service]: `${wanted.namespace}/${wanted.name}` },
    },
    spec: {
      type: 'ClusterIP',
      ipFamilies: [context.family],
      ports: (ports.length > 0 ? ports : [placeholder]).map((port) => ({
        name: portName(port),
        protocol: 'TCP',
        port: port.port,
        targetPort: port.port,
      })),
    },
  };
}

/** The API server refuses a Service that has a port or a name twice. */
function distinct(ports: readonly TenantPort[]): TenantPort[] {
  const names = new Set<string>();
  const numbers = new Set<number>();
  return ports.filter((port) => {
    if (numbers.has(port.port) || names.has(portName(port))) return false;
    numbers.add(port.port);
    names.add(portName(port));
    return true;
  });
}

/** What a stored object stands for; undefined when it is none of ours. */
export function tenantServiceOf(object: Service): TenantService | undefined {
  const [namespace, name, ...more] = (object.metadata.annotations?.[annotations.service] ?? '').split('/');
  if (!namespace || !name || more.length > 0 || object.metadata.name !== remoteServiceName(namespace, name))
    return undefined;
  const ports = (object.spec.ports ?? []).filter((port) => port.name !== placeholder.name);
  return { namespace, name, ports: ports.map((port) => ({ name: port.name, port: port.port })) };
}

/** Where a tunnel listens for these Services, by `keyOfTenantService`. */
export interface TunnelPlace {
  readonly address: string;
  readonly ports: ReadonlyMap<string, number>;
  /** Of this tunnel alone: who comes later overwrites it, who goes leaves the later one's alone. */
  readonly holder: string;
}

export const tunnelSliceName = (service: Service): string => `${service.metadata.name}-tunnel`;

/** The endpoints of one tenant's Service: one, the tunnel. Undefined when it listens on none of its ports. */
export function tunnelSlice(
  service: Service,
  of: TenantService,
  place: TunnelPlace,
  leaseId: string,
): EndpointSlice | undefined {
  const ports = of.ports.flatMap((port) => {
    const listening = place.ports.get(keyOfTenantService(of, port.port));
    return listening === undefined ? [] : [{ name: portName(port), protocol: 'TCP', port: listening }];
  });
  if (ports.length === 0) return undefined;
  const { name, namespace, uid = '' } = service.metadata;
  return {
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: {
      name: tunnelSliceName(service),
      namespace,
      labels: { ...tenantLabels(leaseId), [words.serviceName]: name, [words.sliceManagedBy]: sliceManager },
      annotations: { [annotations.tunnel]: place.holder },
      ownerReferences: [{ apiVersion: 'v1', kind: 'Service', name, uid }],
    },
    addressType: familyOf(place.address),
    endpoints: [{ addresses: [place.address], conditions: { ready: true, serving: true, terminating: false } }],
    ports,
  };
}

/** The same endpoints, with nobody behind them: connections are refused at once instead of getting lost. */
export function withoutTunnel(slice: EndpointSlice): EndpointSlice {
  return {
    ...slice,
    endpoints: (slice.endpoints ?? []).map((one) => ({
      ...one,
      conditions: { ready: false, serving: false, terminating: false },
    })),
  };
}
