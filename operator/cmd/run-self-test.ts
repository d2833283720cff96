/** What `helm test` runs: does what was installed work, and if not, what is to be done. Changes nothing. */
import { kinds } from '../api/kinds.ts';
import { group } from '../api/labels.ts';
import { policies } from '../api/policies.ts';
import { connectCluster } from '../engine/cluster.ts';
import { isNotFound } from '../engine/errors.ts';
import { type Cluster, type KubeObject, type Resource, resources } from '../engine/types.ts';
import { type Option, parseOptions, UsageError } from './options.ts';
import { askGateway, setupOptions } from './run-setup.ts';

const usage = `
Says whether what was installed works.

  self-test consumer|provider [options]

Exit status: 0 all is well; 1 something is not, and it is said what to do; 2 the command was not understood.
`;

const { kubeconfig, namespace, gateway, tls, tlsSecret } = setupOptions;
export const selfTestOptions = {
  kubeconfig,
  namespace,
  gateway,
  tls,
  tlsSecret,
  deployment: {
    description: 'Deployment that must be available, NAME or NAMESPACE/NAME.',
    value: 'NAME',
    many: true,
    parse: (t: string) => t,
  } as Option<string> & { many: true },
  lock: {
    description: 'Leader lock that somebody must hold.',
    value: 'NAME',
    many: true,
    parse: (t: string) => t,
  } as Option<string> & { many: true },
  withoutPolicies: {
    description: 'The admission policies were not installed.',
    parse: (t: string) => t === 'true',
  } as Option<boolean>,
};
type Options = NonNullable<ReturnType<typeof parseOptions<typeof selfTestOptions>>>;

/** Undefined: it is well. */
type Verdict = string | undefined;
type Check = readonly [name: string, look: (signal: AbortSignal) => Promise<Verdict>];

const deployments: Resource = {
  group: 'apps',
  version: 'v1',
  plural: 'deployments',
  kind: 'Deployment',
  namespaced: true,
};

export async function runSelfTest(
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  {
    say,
    now = () => new Date(),
    connect = (file: string) => connectCluster({ name: 'cluster', kubeconfig: file }),
  }: { say: (line: string) => void; now?: () => Date; connect?: (kubeconfig: string) => Cluster },
  signal: AbortSignal,
): Promise<0 | 1> {
  const words: string[] = [];
  const options = parseOptions(usage, selfTestOptions, args, env, words);
  if (!options) return 0;
  const [side] = words;
  if (words.length !== 1 || (side !== 'consumer' && side !== 'provider'))
    throw new UsageError('which side is it? self-test consumer, or self-test provider');
  if (side === 'provider' && !options.gateway)
    throw new UsageError('--gateway is missing: the URL of the gateway in the cluster');
  const cluster = connect(options.kubeconfig);
  let failed = 0;
  for (const [name, look] of checksOf(cluster, side, options, now)) {
    const verdict = await look(signal).catch((error: Error) => error.message);
    if (verdict !== undefined) failed += 1;
    say(verdict === undefined ? `ok      ${name}` : `FAILED  ${name}: ${verdict}`);
  }
  for (const line of await remarks(cluster, side, signal)) say(line);
  say(failed === 0 ? 'all is well' : `${failed} of what was looked at is not well`);
  return failed === 0 ? 0 : 1;
}

function checksOf(cluster: Cluster, side: 'consumer' | 'provider', options: Options, now: () => Date): Check[] {
  const needed = side === 'consumer' ? kinds : kinds.filter((one) => one.kind === 'GpuOffer');
  return [
    ...needed.map(
      ({ kind, plural }): Check => [
        `kind ${kind}`,
        async (signal) => {
          type Crd = KubeObject & { status?: { conditions?: { type: string; status: string; message?: string }[] } };
          const crd = await cluster.get<Crd>(resources.crds, { name: `${plural}.${group}` }, signal);
          if (!crd) return 'is not there: set crds.enabled=true, or install it';
          const established = crd.status?.conditions?.find((one) => one.type === 'Established');
          return established?.status === 'True' ? undefined : (established?.message ?? 'is not served yet');
        },
      ],
    ),
    ...options.deployment.map((given): Check => {
      const [at = options.namespace, name = given] = given.includes('/')
        ? given.split('/', 2)
        : [options.namespace, given];
      return [
        `deployment ${name}`,
        async (signal) => {
          type Deployment = KubeObject & { status?: { availableReplicas?: number } };
          const found = await cluster.get<Deployment>(deployments, { namespace: at, name }, signal);
          if (!found) return `is not in namespace ${at}`;
          return (found.status?.availableReplicas ?? 0) > 0
            ? undefined
            : `has no pod that is ready: kubectl -n ${at} describe pods -l app.kubernetes.io/name=gpulease`;
        },
      ];
    }),
    ...options.lock.map(
      (name): Check => [
        `leader lock ${name}`,
        async (signal) => {
          type Lock = KubeObject & { spec?: { holderIdentity?: string; renewTime?: string } };
          const lock = await cluster.get<Lock>(resources.leases, { namespace: options.namespace, name }, signal);
          if (!lock?.spec?.holderIdentity) return 'nobody holds it: see the logs of the pods';
          const age = (now().getTime() - Date.parse(lock.spec.renewTime ?? '')) / 1000;
          return age < 120
            ? undefined
            : `was renewed ${Math.round(age)} s ago: see the logs of ${lock.spec.holderIdentity}`;
        },
      ],
    ),
    ...(side === 'consumer' && !options.withoutPolicies ? [policyCheck(cluster)] : []),
    ...(side === 'provider'
      ? ([
          [
            'the gateway answers',
            async (signal) => {
              await askGateway(cluster, options, signal);
              return undefined;
            },
          ],
        ] satisfies Check[])
      : []),
  ];
}

function policyCheck(cluster: Cluster): Check {
  return [
    'admission policies',
    async (signal) => {
      const missing: string[] = [];
      for (const { name, manifests } of policies) {
        const kind = manifests[0]?.kind;
        const resource = kind === 'MutatingAdmissionPolicy' ? resources.mutatingPolicies : resources.admissionPolicies;
        const known = await knows(cluster, resource, signal);
        // Below 1.36 there are no mutating ones: pods then bring their own selector and tolerations.
        if (known && !(await cluster.get(resource, { name }, signal))) missing.push(name);
      }
      return missing.length === 0 ? undefined : `not there: ${missing.join(', ')}; helm upgrade brings them back`;
    },
  ];
}

async function knows(cluster: Cluster, resource: Resource, signal: AbortSignal): Promise<boolean> {
  try {
    await cluster.list(resource, { limit: 1 }, signal);
    return true;
  } catch (error) {
    if (isNotFound(error)) return false;
    throw error;
  }
}

/** What is no fault of the installation, and yet worth a line. */
async function remarks(cluster: Cluster, side: 'consumer' | 'provider', signal: AbortSignal): Promise<string[]> {
  type Judged = KubeObject & {
    status?: { conditions?: { type: string; status: string; reason: string; message?: string }[] };
  };
  const resource = side === 'consumer' ? resources.gpuProviders : resources.gpuOffers;
  const items = await cluster.list<Judged>(resource, { limit: 100 }, signal).then(
    (list) => list.items,
    () => [],
  );
  if (items.length === 0)
    return [
      side === 'consumer'
        ? 'note    no GpuProvider is there yet: nothing can be leased'
        : 'note    no GpuOffer is there yet: nothing is offered',
    ];
  return items.slice(0, 20).map(({ metadata, status }) => {
    const ready = status?.conditions?.find((one) => one.type === 'Ready');
    return `note    ${resource.kind} ${metadata.name}: ${ready ? `Ready=${ready.status} ${ready.reason}${ready.status === 'True' ? '' : ` ${ready.message ?? ''}`}` : 'not looked at yet'}`.trimEnd();
  });
}
