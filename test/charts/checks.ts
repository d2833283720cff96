/** What must hold of every manifest of the charts, whatever the values are. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseGatewayOptions, parseProvisionerOptions } from '../../operator/cmd/gateway-options.ts';
import { parseOptions } from '../../operator/cmd/options.ts';
import { approverOptions } from '../../operator/cmd/run-approver.ts';
import { drainOptions } from '../../operator/cmd/run-drain.ts';
import { operatorOptions } from '../../operator/cmd/run-operator.ts';
import { selfTestOptions } from '../../operator/cmd/run-self-test.ts';
import { setupOptions } from '../../operator/cmd/run-setup.ts';
import { parseWalletOptions } from '../../operator/cmd/wallet-options.ts';
import type { Manifest } from './lab.ts';

type Parse = (args: readonly string[], env: NodeJS.ProcessEnv) => unknown;

/** As each program reads its own arguments. */
const parsers: Readonly<Record<string, Parse>> = {
  operator: (args, env) => parseOptions('', operatorOptions, args, env),
  wallet: parseWalletOptions,
  approver: (args, env) => parseOptions('', approverOptions, args, env),
  gateway: parseGatewayOptions,
  provisioner: parseProvisionerOptions,
  drain: (args, env) => parseOptions('', drainOptions, args, env, []),
  setup: (args, env) => parseOptions('', setupOptions, args, env),
  'self-test': (args, env) => parseOptions('', selfTestOptions, args, env, []),
};

interface Container {
  readonly name: string;
  readonly image: string;
  readonly args: readonly string[];
  readonly env?: readonly { readonly name: string; readonly value?: string; readonly valueFrom?: object }[];
  readonly ports?: readonly { readonly name: string }[];
  readonly securityContext?: Record<string, unknown>;
  readonly livenessProbe?: object;
  readonly readinessProbe?: object;
  readonly resources?: { readonly requests?: object; readonly limits?: object };
}

const clusterScoped = new Set([
  'Namespace',
  'ClusterRole',
  'ClusterRoleBinding',
  'CustomResourceDefinition',
  'MutatingAdmissionPolicy',
  'MutatingAdmissionPolicyBinding',
  'ValidatingAdmissionPolicy',
  'ValidatingAdmissionPolicyBinding',
  'StorageClass',
  'CSIDriver',
  'DeviceClass',
]);

/** What is wrong, a line each. */
export function faultsOf(manifests: readonly Manifest[]): string[] {
  const faults: string[] = [];
  const seen = new Set<string>();
  for (const manifest of manifests) {
    const { kind, metadata } = manifest;
    const name = `${kind} ${metadata.namespace ?? ''}/${metadata.name}`;
    if (seen.has(name)) faults.push(`${name} is there twice`);
    seen.add(name);
    if (clusterScoped.has(kind) === (metadata.namespace !== undefined))
      faults.push(`${name} ${metadata.namespace ? 'has' : 'lacks'} a namespace`);
    if (kind === 'ClusterRole' || kind === 'Role') faults.push(...faultsOfRole(name, manifest.rules));
    const pod = podOf(manifest);
    if (pod) faults.push(...faultsOfPod(name, pod, kind === 'Deployment'));
  }
  faults.push(...danglingSubjects(manifests));
  return faults;
}

function podOf(manifest: Manifest) {
  if (manifest.kind === 'Pod') return manifest.spec;
  return manifest.kind === 'Deployment' || manifest.kind === 'Job' ? manifest.spec.template.spec : undefined;
}

function faultsOfPod(name: string, pod: Record<string, unknown>, lasts: boolean): string[] {
  const faults: string[] = [];
  const security = pod.securityContext as Record<string, unknown> | undefined;
  if (security?.runAsNonRoot !== true) faults.push(`${name} may run as root`);
  if (JSON.stringify(security?.seccompProfile) !== '{"type":"RuntimeDefault"}')
    faults.push(`${name} has no seccomp profile`);
  for (const container of pod.containers as Container[]) {
    const its = container.securityContext ?? {};
    if (its.readOnlyRootFilesystem !== true || its.allowPrivilegeEscalation !== false)
      faults.push(`${name} may write to its image, or gain rights`);
    if (JSON.stringify(its.capabilities) !== '{"drop":["ALL"]}') faults.push(`${name} keeps capabilities`);
    if (!container.resources?.requests || !container.resources.limits) faults.push(`${name} has no requests or limits`);
    if (lasts && !(container.livenessProbe && container.readinessProbe)) faults.push(`${name} is not probed`);
    const why = argumentsFault(container);
    if (why) faults.push(`${name}: its arguments are refused: ${why}`);
  }
  return faults;
}

/** As the program itself would say, with files in the places of those that are mounted. */
function argumentsFault({ args, env = [] }: Container): string | undefined {
  const [program = '', ...flags] = args;
  // `gpulease provider check` reads its flags and goes on at once.
  if (program === 'provider') return flags[0] === 'check' ? undefined : `there is no program provider ${flags[0]}`;
  const parse = parsers[program];
  if (!parse) return `there is no program ${program}`;
  const folder = mkdtempSync(join(tmpdir(), 'gpulease-charts-'));
  try {
    const chainId = Number(/^--chain=(\d+)=/.exec(flags.find((one) => one.startsWith('--chain=')) ?? '')?.[1] ?? 31337);
    const rails = [{ chainId, escrow: `0x${'1'.repeat(40)}`, token: `0x${'2'.repeat(40)}` }];
    writeFileSync(join(folder, 'rails.json'), JSON.stringify(rails));
    const here = flags.map((one) => one.replace(/=\/var\/run\/.*\/rails\.json$/, `=${join(folder, 'rails.json')}`));
    const variables = Object.fromEntries(env.map(({ name, value }) => [name, value ?? '31337=http://rpc.example.com']));
    parse(here, variables);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

interface Rule {
  readonly apiGroups: readonly string[];
  readonly resources: readonly string[];
  readonly verbs: readonly string[];
  readonly resourceNames?: readonly string[];
}

function faultsOfRole(name: string, rules: readonly Rule[]): string[] {
  return rules.flatMap((rule) => {
    const { apiGroups, resources, verbs, resourceNames } = rule;
    const faults: string[] = [];
    if ([...apiGroups, ...resources, ...verbs].includes('*'))
      faults.push(`${name} gives everything: ${JSON.stringify(rule)}`);
    if (verbs.some((verb) => ['escalate', 'impersonate'].includes(verb))) faults.push(`${name} may become anybody`);
    if (verbs.includes('bind') && !resourceNames) faults.push(`${name} may bind any role`);
    if (resources.includes('nodes/proxy')) faults.push(`${name} may run commands in every pod`);
    // What the API server cannot decide by name would be no limit at all.
    if (resourceNames && verbs.includes('create') && !resources.some((one) => one.includes('/')))
      faults.push(`${name} names objects that are yet to be made: ${JSON.stringify(rule)}`);
    return faults;
  });
}

/** Roles that nobody made, accounts that nobody has. */
function danglingSubjects(manifests: readonly Manifest[]): string[] {
  const there = new Set(manifests.map(({ kind, metadata }) => `${kind} ${metadata.namespace ?? ''}/${metadata.name}`));
  const faults: string[] = [];
  for (const { kind, metadata, roleRef, subjects } of manifests) {
    if (kind !== 'RoleBinding' && kind !== 'ClusterRoleBinding') continue;
    const role = `${roleRef.kind} ${roleRef.kind === 'Role' ? metadata.namespace : ''}/${roleRef.name}`;
    if (!there.has(role)) faults.push(`${kind} ${metadata.name} binds ${role}, which is not there`);
    for (const subject of subjects)
      if (!there.has(`ServiceAccount ${subject.namespace}/${subject.name}`))
        faults.push(`${kind} ${metadata.name} binds ${subject.namespace}/${subject.name}, which is not there`);
  }
  for (const manifest of manifests) {
    const account = podOf(manifest)?.serviceAccountName;
    if (account && !there.has(`ServiceAccount ${manifest.metadata.namespace}/${account}`))
      faults.push(`${manifest.kind} ${manifest.metadata.name} runs as ${account}, which is not there`);
  }
  return faults;
}
