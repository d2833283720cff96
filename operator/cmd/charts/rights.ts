/**
 * Rights of the accounts as data for the templates, and policies that name accounts, as templates. Namespaces that values choose
 * stand as `@release`, `@wallet`, `@provisioner`.
 */
import { gatewayHomeRules, gatewayRole } from '../../core/allocation/rights.ts';
import { accountOf, accounts } from '../../core/rights/accounts.ts';
import { operatorNamespace, walletNamespace } from '../../core/rights/consumer.ts';
import { guards } from '../../core/rights/guards.ts';
import { provisionerNamespace } from '../../core/rights/provider.ts';
import { type RbacObject, sharedRoles } from '../../core/rights/rbac.ts';
import type { Account, Rule } from '../../core/rights/rule.ts';

interface ChartAccount {
  readonly component: string;
  readonly serviceAccount: string;
  readonly namespace: string;
  readonly cluster: readonly Rule[];
  readonly within: readonly { readonly namespace: string; readonly rules: readonly Rule[] }[];
}

export interface ChartRights {
  /** By `processes` of the values. */
  readonly Split: readonly ChartAccount[];
  readonly Single: readonly ChartAccount[];
  /** Bound by processes, where and while they are needed. */
  readonly roles: readonly { readonly name: string; readonly rules: readonly Rule[] }[];
}

const chosen: Readonly<Record<string, string>> = {
  [operatorNamespace]: '@release',
  [walletNamespace]: '@wallet',
  [provisionerNamespace]: '@provisioner',
};
const place = (namespace: string) => chosen[namespace] ?? namespace;

const chartAccount = ({ process, serviceAccount, namespace, cluster, within }: Account): ChartAccount => ({
  component: process,
  serviceAccount,
  namespace: place(namespace),
  cluster,
  within: within.map((one) => ({ namespace: place(one.namespace), rules: one.rules })),
});

/** One process that does it all: in its own namespace it has what the others have in theirs. */
function operatorAlone(): ChartAccount {
  const all = accounts.filter((one) => one.side === 'consumer').map(chartAccount);
  return {
    ...chartAccount(accountOf('operator')),
    cluster: all.flatMap((one) => one.cluster),
    within: all
      .flatMap((one) => one.within)
      .map(({ namespace, rules }) => ({ namespace: namespace === '@wallet' ? '@release' : namespace, rules })),
  };
}

export function rights(chart: 'operator' | 'provider'): ChartRights {
  const side = chart === 'operator' ? 'consumer' : 'provider';
  const roles = sharedRoles[side].map(({ metadata, rules }) => ({
    name: metadata.name,
    rules: rules as readonly Rule[],
  }));
  const Split = accounts.filter((one) => one.side === side).map(chartAccount);
  if (chart === 'operator') return { Split, Single: [operatorAlone()], roles };
  const gateway = {
    ...chartAccount(accountOf('gateway')),
    cluster: gatewayRole.rules,
    within: [{ namespace: '@release', rules: gatewayHomeRules }],
  };
  return { Split, Single: [gateway], roles };
}

const approver = accountOf('approver').serviceAccount;
const operator = accountOf('operator').serviceAccount;

/** Policies that confine the accounts, with `@…` where values are filled in. */
export const guardManifests: readonly RbacObject[] = guards({
  operator: `system:serviceaccount:@release:${operator}`,
  approver: '@approver',
  closed: ['@release', '@wallet'],
});

/** What stands for `@…` in a template. */
export const guardPlaceholders: Readonly<Record<string, string>> = {
  '@release': '{{ .Release.Namespace }}',
  '@wallet': '{{ .Values.wallet.namespace }}',
  '@approver': `system:serviceaccount:{{ .Release.Namespace }}:{{ ternary "${approver}" "${operator}" (eq .Values.processes "Split") }}`,
};
