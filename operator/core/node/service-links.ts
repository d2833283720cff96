/**
 * The variables by which a container finds Services, as a kubelet makes them. They are the consumer's, as the pod is.
 * https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
 *
 * At the provider they are a ConfigMap, one for a namespace, which is the first `envFrom` of each container: so they yield to
 * whatever the pod itself sets, are read anew at each start of a container, and a Service that comes or goes changes no pod.
 */
import { sha256Hex } from './sha256.ts';

/** As much of a Service as is told. */
export interface LinkedService {
  readonly metadata: { readonly name: string; readonly namespace?: string };
  readonly spec?: {
    readonly clusterIP?: string;
    readonly ports?: readonly { readonly name?: string; readonly port: number; readonly protocol?: string }[];
  };
}

/** Whose variables: those of a namespace, or of the API server's Service alone. */
export interface ServiceLinks {
  readonly kind: 'ServiceLinks';
  readonly namespace: string;
  readonly all: boolean;
}

export const serviceLinksOf = (namespace: string, enabled: boolean | undefined): ServiceLinks =>
  enabled === false
    ? { kind: 'ServiceLinks', namespace: 'default', all: false }
    : { kind: 'ServiceLinks', namespace, all: true };

/** A name that no ConfigMap of a tenant's can have: those end in more digits. */
export const serviceLinksName = ({ namespace, all }: ServiceLinks): string =>
  all ? `services-${sha256Hex(`services/${namespace}`).slice(0, 20)}` : 'services-none';

/** The API server's Service, which every pod is told of. */
const isMaster = ({ metadata }: LinkedService): boolean =>
  metadata.namespace === 'default' && metadata.name === 'kubernetes';

export const concerns = (links: ServiceLinks, service: LinkedService): boolean =>
  isMaster(service) || (links.all && service.metadata.namespace === links.namespace);

/** A ConfigMap holds 1 MiB; far less than this makes a process that cannot be started. */
const mostBytes = 800_000;

export interface ServiceVariables {
  readonly variables: Readonly<Record<string, string>>;
  /** How many Services there was no room for. */
  readonly left: number;
}

/** In order of names, so that the same Services make the same object. */
export function serviceVariables(links: ServiceLinks, services: Iterable<LinkedService>): ServiceVariables {
  const told = new Map<string, LinkedService>();
  for (const service of services) {
    if (!concerns(links, service) || !hasAddress(service)) continue;
    // A Service of that name in the pod's own namespace comes before the API server's.
    if (isMaster(service) && told.has(service.metadata.name)) continue;
    told.set(service.metadata.name, service);
  }
  const variables: Record<string, string> = {};
  let bytes = 0;
  let left = 0;
  for (const name of [...told.keys()].sort()) {
    const own = variablesOf(told.get(name)!);
    const size = Object.entries(own).reduce((sum, [key, value]) => sum + key.length + value.length + 8, 0);
    if (bytes + size > mostBytes) {
      left++;
      continue;
    }
    bytes += size;
    Object.assign(variables, own);
  }
  return { variables, left };
}

const hasAddress = ({ spec }: LinkedService): boolean =>
  spec?.clusterIP !== undefined && spec.clusterIP !== '' && spec.clusterIP !== 'None' && (spec.ports?.length ?? 0) > 0;

function variablesOf({ metadata, spec }: LinkedService): Record<string, string> {
  const host = spec!.clusterIP!;
  const ports = spec!.ports!;
  const prefix = variableName(metadata.name);
  const own: Record<string, string> = {
    [`${prefix}_SERVICE_HOST`]: host,
    [`${prefix}_SERVICE_PORT`]: String(ports[0]!.port),
  };
  for (const { name, port } of ports) if (name) own[`${prefix}_SERVICE_PORT_${variableName(name)}`] = String(port);
  const address = host.includes(':') ? `[${host}]` : host;
  ports.forEach(({ port, protocol: given }, i) => {
    const protocol = given || 'TCP';
    const url = `${protocol.toLowerCase()}://${address}:${port}`;
    if (i === 0) own[`${prefix}_PORT`] = url;
    const at = `${prefix}_PORT_${port}_${protocol.toUpperCase()}`;
    own[at] = url;
    own[`${at}_PROTO`] = protocol.toLowerCase();
    own[`${at}_PORT`] = String(port);
    own[`${at}_ADDR`] = host;
  });
  return own;
}

const variableName = (name: string): string => name.toUpperCase().replaceAll('-', '_');
