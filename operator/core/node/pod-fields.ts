/** The pod itself. What is left behind placed the pod, or is an account: nobody's business at the provider. */
import { carried, each, hostOnly, leftBehind, object, only, refused, rewritten, type Work } from './carrying.ts';
import { carryContainer, containerTable, ephemeralContainerTable, resources } from './container-fields.ts';
import type { ObjectTable, Place } from './field-table.ts';
import { hostNames } from './hostnames.ts';
import type { Container } from './pod.ts';
import { podSecurity } from './security-fields.ts';
import { carryVolumes, pullSecret, volumeTable } from './volume-fields.ts';

const containers = (note?: string) =>
  ({
    ...carried(note),
    inside: () => containerTable,
    isList: true,
    carry(value: unknown, { path, work }: Place<Work>) {
      const list = value as Container[];
      return list.length === 0
        ? undefined
        : list.map((container, i) => carryContainer(containerTable, container, `${path}[${i}]`, work));
    },
  }) as const;

const dnsOption: ObjectTable<Work> = { type: 'PodDNSConfigOption', fields: { name: carried(), value: carried() } };
const dnsConfig: ObjectTable<Work> = {
  type: 'PodDNSConfig',
  fields: { nameservers: carried(), searches: carried(), options: each(() => dnsOption) },
};
const hostAlias: ObjectTable<Work> = { type: 'HostAlias', fields: { ip: carried(), hostnames: carried() } };
const os: ObjectTable<Work> = {
  type: 'PodOS',
  fields: { name: only(['linux'], 'FieldNotSupported', 'leased nodes run Linux') },
};

const placed = leftBehind('placed the pod here; the provider has one node for it');
const account = leftBehind('an account of this cluster; the downward API shows it');
const noHost = 'leased nodes give no access to the host';
const host = refused('HostAccessRefused', noHost);

export const podSpecTable: ObjectTable<Work> = {
  type: 'PodSpec',
  fields: {
    // First: containers leave out the mounts of volumes that stay behind.
    volumes: rewritten(
      'each by its kind; the token volume that Kubernetes adds stays behind unless the lease says Bound',
      carryVolumes,
      () => volumeTable,
      true,
    ),
    containers: containers(),
    initContainers: containers(),
    // Carried to the running pod, each for itself: see translate-pod.ts.
    ephemeralContainers: {
      ...rewritten(
        'added to the running pod; one that is not allowed is told of in its status',
        () => undefined,
        () => ephemeralContainerTable,
        true,
      ),
    },
    activeDeadlineSeconds: carried('a later change is carried, too'),
    affinity: placed,
    automountServiceAccountToken: leftBehind('the provider’s account has no token'),
    dnsConfig: object(() => dnsConfig),
    dnsPolicy: carried('ClusterFirst asks the provider’s DNS, which does not know the Services of this cluster'),
    enableServiceLinks: rewritten('variables of this cluster’s Services, never of the provider’s', () => undefined),
    hostAliases: each(() => hostAlias),
    hostIPC: host,
    hostNetwork: hostOnly(noHost),
    hostPID: host,
    hostUsers: carried(),
    hostname: rewritten('the pod’s name where it is not set, as if it ran here', () => undefined),
    hostnameOverride: rewritten('as it is, or the name that a label cannot hold', () => undefined),
    imagePullSecrets: {
      ...rewritten(
        'sent along, with the names at the provider',
        (value, { path, work }) => {
          const list = (value as { name?: string }[]).filter(({ name }) => name);
          return list.length === 0 ? undefined : pullSecrets.carry(list, { path, work, of: {} });
        },
        () => pullSecret,
        true,
      ),
    },
    nodeName: placed,
    nodeSelector: placed,
    os: object(() => os),
    overhead: leftBehind('that of this cluster’s runtime class; the provider counts its own'),
    preemptionPolicy: placed,
    priority: placed,
    priorityClassName: placed,
    readinessGates: leftBehind('judged here, by the conditions that are set here'),
    resourceClaims: refused(
      'FieldNotSupported',
      'device claims are not carried, except as counts of GPUs where the lease shows devices (node.gpusAs): ask for nvidia.com/gpu',
    ),
    resources: object(() => resources, 'of the pod as a whole; capped at the lease'),
    restartPolicy: carried(),
    runtimeClassName: leftBehind('the provider chooses the runtime; an event says so', (value, { work }) => {
      if (value !== '')
        work.notes.push({
          reason: 'RuntimeClassLeftBehind',
          message: `Runtime class ${String(value)} is of this cluster: the provider runs the pod in a runtime of its own choice.`,
        });
    }),
    schedulerName: placed,
    schedulingGates: placed,
    schedulingGroup: placed,
    securityContext: object(() => podSecurity),
    serviceAccount: account,
    serviceAccountName: account,
    setHostnameAsFQDN: rewritten('the whole name of this cluster is sent as hostnameOverride', () => undefined),
    shareProcessNamespace: carried(),
    subdomain: leftBehind('names in the DNS of this cluster mean nothing at the provider'),
    terminationGracePeriodSeconds: carried(),
    tolerations: leftBehind('placed the pod here; changes need not be carried'),
    topologySpreadConstraints: placed,
    // Before Kubernetes 1.36, what schedulingGroup is now.
    workloadRef: placed,
  },
  also: (spec, { work }) => ({
    ...spec,
    ...hostNames(work.pod, work.view.clusterDomain),
    // The provider's Services, and the provider's account, are none of the pod's business.
    enableServiceLinks: false,
    automountServiceAccountToken: false,
  }),
};

const pullSecrets = each(() => pullSecret);
