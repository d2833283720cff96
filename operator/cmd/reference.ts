/** The reference, made from the same registries that the programs use: kinds and their fields, conditions, reasons. */
import { z } from 'zod';
import { budgetReasons, endReasons, lifeConditions, pendingReasons, providerReasons } from '../api/conditions.ts';
import { gatewayReasons } from '../api/gateway.ts';
import { kinds } from '../api/kinds.ts';
import { accessLabelPrefix, apiVersion, labels, taints } from '../api/labels.ts';
import { gpuModels } from '../api/models.ts';
import { policies } from '../api/policies.ts';
import { receipt } from '../api/receipt.ts';
import { claimReasons, storageClass } from '../api/storage-class.ts';
import { receiptField, receiptSecretType } from '../controllers/consumer/receipts.ts';
import { controlsName } from '../core/allocation/controls.ts';
import { listenerInTenantRules, tenantRole } from '../core/allocation/rights.ts';
import { tablesWithin } from '../core/node/field-table.ts';
import { podSpecTable } from '../core/node/pod-fields.ts';
import { focusColumns, focusVersion } from '../core/receipt/focus.ts';
import { faultMeanings } from '../core/receipt/verify.ts';
import { accounts } from '../core/rights/accounts.ts';
import { operatorInNamespaceRules, operatorTokensRules } from '../core/rights/consumer.ts';
import { guards } from '../core/rights/guards.ts';
import type { Rule } from '../core/rights/rule.ts';

interface Field {
  type?: string;
  description?: string;
  default?: unknown;
  enum?: unknown[];
  minimum?: number;
  maximum?: number;
  pattern?: string;
  properties?: Record<string, Field>;
  required?: string[];
  items?: Field;
  additionalProperties?: Field | boolean;
  anyOf?: Field[];
  'x-kubernetes-validations'?: { rule: string; message: string }[];
  'x-kubernetes-int-or-string'?: boolean;
}

const cell = (text: string) => text.replaceAll('|', '\\|').replaceAll('\n', ' ');

function typeOf(field: Field): string {
  if (field['x-kubernetes-int-or-string'] || field.anyOf) return 'quantity';
  if (field.enum) return field.enum.map(String).join(' · ');
  if (field.type === 'array') return `list of ${typeOf(field.items ?? {})}`;
  if (field.type === 'object' && typeof field.additionalProperties === 'object') return 'map of strings';
  if (field.type === 'integer') {
    const low = field.minimum !== undefined && field.minimum > -2147483648 ? field.minimum : undefined;
    const high = field.maximum !== undefined && field.maximum < Number.MAX_SAFE_INTEGER ? field.maximum : undefined;
    return low !== undefined && high !== undefined ? `integer ${low}–${high}` : 'integer';
  }
  return field.type ?? 'any';
}

function rows(field: Field, path: string, out: string[]): void {
  for (const [name, child] of Object.entries(field.properties ?? {})) {
    const at = path ? `${path}.${name}` : name;
    const must = field.required?.includes(name) && child.default === undefined;
    const rules = (child['x-kubernetes-validations'] ?? []).map((r) => r.message).join('; ');
    const fallback =
      child.default === undefined ? (must ? '**required**' : '–') : `\`${JSON.stringify(child.default)}\``;
    out.push(
      `| \`${at}\` | ${cell(typeOf(child))} | ${cell(fallback)} | ${cell([child.description, rules && `Rule: ${rules}.`].filter(Boolean).join(' '))} |`,
    );
    if (child.type === 'object') rows(child, at, out);
    if (child.type === 'array' && child.items?.type === 'object') rows(child.items, `${at}[]`, out);
  }
}

/** What becomes of a pod, from the table by which it is translated. */
function podFields(out: string[]): void {
  const tables = [...tablesWithin(podSpecTable).values()];
  out.push(
    '',
    '## What becomes of each field of a pod',
    '',
    'A pod that is bound to a leased node is made at the provider. **Carried**: as it is. **Rewritten**: sent in another form. **Left behind**: not sent, and nothing is lost by it. **Refused**: the pod fails at once and says why, unless the field is empty. A field that is not listed here is refused. The provider admits the pod again by rules of its own; it may be stricter.',
    '',
  );
  const plain: string[] = [];
  const container = tables.find(({ type }) => type === 'Container');
  for (const { type, fields } of tables) {
    const own = Object.entries(fields).filter(
      ([field, rule]) => type !== 'EphemeralContainer' || container?.fields[field] !== rule,
    );
    if (own.every(([, rule]) => rule.fate === 'carried' && rule.note === undefined && !rule.inside)) {
      if (type !== 'EphemeralContainer') {
        plain.push(`${type} (${own.map(([field]) => `\`${field}\``).join(', ')})`);
        continue;
      }
    }
    out.push(`### ${type}`, '');
    if (type === 'EphemeralContainer') out.push('As Container, and:', '');
    out.push('| field | what becomes of it | note |', '|---|---|---|');
    // Fields of one fate, told once.
    const rows = new Map<string, string[]>();
    for (const [field, rule] of own.sort(([a], [b]) => (a < b ? -1 : 1))) {
      const inner = rule.inside && `see ${rule.inside().type}`;
      const row = `${rule.fate} | ${cell([rule.note, inner].filter(Boolean).join('; '))}`;
      rows.set(row, [...(rows.get(row) ?? []), `\`${field}${rule.isList ? '[]' : ''}\``]);
    }
    for (const [row, names] of rows) out.push(`| ${names.join(', ')} | ${row} |`);
    out.push('');
  }
  out.push(`Carried whole: ${plain.join(', ')}.`, '');
  out.push(
    'Of a pod that runs, these changes are carried: images, `activeDeadlineSeconds`, labels and annotations that downward API files show, ephemeral containers, and CPU and memory by `pods/resize` within what is leased. ConfigMaps and Secrets that it mounts are carried when they change; the provider’s kubelet then rewrites the files with its next look at the pod, within a minute and a half, as any kubelet does.',
  );
}

function storage(out: string[]): void {
  out.push(
    '',
    '## Storage',
    '',
    `In \`crds/storage/\`: StorageClass \`${storageClass.metadata.name}\` and its CSIDriver. A claim of that class is stored by the provider of the leased node that its first pod is scheduled to, if that provider offers storage (\`--storage-class\`, \`--max-storage\` of the gateway). \`ReadWriteOnce\` and \`ReadWriteOncePod\`, file systems, no snapshots, clones or resizing. Generic ephemeral volumes work, too.`,
    '',
    'What is stored belongs to the lease. It outlives pods, and ends with the lease at the latest; nothing of it is copied. The lease says which claims lose what they store, before it ends and when it does, and each claim is told. Afterwards the claim has the condition `DataLost`, its PersistentVolume stays, and its pods are not scheduled: no empty volume takes the place of a lost one before somebody deletes the claim. A PersistentVolume with the policy Retain leaves its data at the provider until the lease ends.',
    '',
    '| event on a claim | meaning |',
    '|---|---|',
  );
  for (const [reason, meaning] of Object.entries(claimReasons)) out.push(`| \`${reason}\` | ${cell(meaning)} |`);
}

/** What each service account may do, and what it could do in other hands. */
function accountsOf(out: string[]): void {
  out.push(
    '',
    '## Processes and service accounts',
    '',
    'Where the sides are split (`operator --with none`, `gateway --with none`), each process has an account of its own with these rights and no others; `npm run sandbox -- --split` runs them so. One process that does all (`operator`, `gateway`) has the rights of all its parts, and holds their keys.',
    '',
    '| process | account | holds | if it were stolen, it could | it could not |',
    '|---|---|---|---|---|',
  );
  const items = (words: readonly string[]) => cell(words.join('; '));
  for (const { process, namespace, serviceAccount, holds, ifStolen } of accounts)
    out.push(
      `| \`${process}\` | \`${namespace}/${serviceAccount}\` | ${cell(holds)} | ${items(ifStolen.could)} | ${items(ifStolen.couldNot)} |`,
    );
  out.push(
    '',
    `Two admission policies say what RBAC cannot: ${guards({ operator: '', approver: '' })
      .filter(({ kind }) => kind === 'ValidatingAdmissionPolicy')
      .map(({ metadata }) => `\`${metadata.name}\``)
      .join(
        ' and ',
      )}. Without them the operator could change any pod and node, and the approver bind its two roles to anybody.`,
    '',
    '### Rights',
    '',
    '| account | where | resources | verbs |',
    '|---|---|---|---|',
  );
  const rows = (account: string, where: string, rules: readonly Rule[]) => {
    for (const { apiGroups, resources, verbs, resourceNames } of rules) {
      const group = apiGroups.filter((one) => one !== '').join(', ');
      const named = resourceNames ? ` named ${resourceNames.map((one) => `\`${one}\``).join(', ')}` : '';
      out.push(
        `| ${account} | ${where} | ${resources.map((one) => `\`${one}\``).join(', ')}${group === '' ? '' : ` (${group})`}${named} | ${verbs.join(', ')} |`,
      );
    }
  };
  for (const { process, cluster, within } of accounts) {
    rows(process, 'cluster', cluster);
    for (const { namespace, rules } of within) rows(process, `\`${namespace}\``, rules);
  }
  rows('operator', 'namespaces with a lease, bound by the approver', operatorInNamespaceRules);
  rows('operator', 'those where a lease says `serviceAccountTokens: Bound`', operatorTokensRules);
  rows('gateway', 'namespaces of tenants, bound by the provisioner', listenerInTenantRules);
  rows("tenant's own, which the gateway acts as", 'its namespace, bound by the provisioner', tenantRole.rules);
}

/** Receipts, the command that reads them, and what it makes of them. */
function papers(out: string[]): void {
  out.push(
    '',
    '## Receipts, statements, charges',
    '',
    `Every settled escrow leaves a receipt: a Secret of type \`${receiptSecretType}\` in the operator's namespace, in its field \`${receiptField}\`. It outlives the lease, and stays for the operator's \`--receipt-retention-days\`. \`npx gpulease --help\` says how to list, show and verify receipts, and how to make statements and charges of them.`,
    '',
    'Examples, of the leases of `npm run sandbox -- --exit`: `operator/reference/`, made by `npm run generate`. `npm run sandbox -- --exit --papers DIR` writes those of a real run.',
    '',
    "In the operator's /metrics, what leased nodes cost is found under OpenCost's names and labels: `node_gpu_hourly_cost`, `node_gpu_count`, `node_cpu_hourly_cost`, `node_ram_hourly_cost`, `node_total_hourly_cost`, `kubecost_node_is_spot`, with the further label `asset`. `gpulease_quote_vs_billed_ratio` is what was billed over what the quote says that the billed seconds cost, the highest of all leases that this process settled: above 1 somebody was billed too much.",
    '',
    'Escrows that both sides have left behind are finalized by whoever pays for the gas: `npx gpulease sweep --chain ID=URL --escrow ADDRESS` says which, what it would cost and what would go back to depositors; `--key-file FILE --yes` does it. The last line is JSON; the exit status is 0, or 1 when the contract refused some, 2 when the command was not understood, 3 when something could not be asked or was not seen in a block.',
    '',
    'Rounding, each amount once and from sums: `claimed` = min(deposit, ⌊servedSeconds × gpus × pricePerGpuHour / 3600⌋), `fee` = ⌊claimed × feeBps / 10000⌋, `referrerFee` = ⌊fee × referrerBps / 10000⌋, `paid` = claimed − fee, `refunded` = deposit − claimed.',
    '',
    '### Fields of a receipt',
    '',
    '| field | type | default | meaning |',
    '|---|---|---|---|',
  );
  rows(z.toJSONSchema(receipt, { target: 'openapi-3.0', io: 'input' }) as Field, '', out);
  out.push('', '### Faults that `gpulease receipt verify` names', '', '| fault | meaning |', '|---|---|');
  for (const [fault, meaning] of Object.entries(faultMeanings)) out.push(`| \`${fault}\` | ${meaning} |`);
  out.push(
    '',
    '### Invoices, for customers who pay in money',
    '',
    '`node operator/cmd/sponsor.ts` is a program of its own: a *sponsor*, whose account tops up the escrows of its customers. A customer opens its escrows itself, with a small deposit of its own; the sponsor adds to them as time passes, never more than an hour ahead by default and never beyond the credit limit. The contract spends the customer’s own money first, and gives what is left to whom it came from. Nothing is taken on trust from the customer: escrows are found and read on chain.',
    '',
    'What an escrow spent of the sponsor’s tokens is charged when its close is final, at the rate and margin agreed. **Credit limit**: what is charged and not paid, and all sponsored tokens that lie in escrows, are together never above it; when it is reached, escrows are funded no further, and their leases end as any that runs out of money does. **Invoice**: one a customer and month, as JSON or as a page of HTML that a browser prints or saves as PDF; no PDF is made here. **Payments** come in by the webhook of a card processor: Stripe’s events `payment_intent.succeeded` (its metadata name the invoice), `charge.refunded` and `charge.dispute.created`, with the signature checked over the raw body, five minutes at most old, each event and each payment counted once, in whatever order they come. Cards are charged by the processor; no card, and no key that could charge one, is ever here.',
    '',
    'It runs anywhere from where the chain and one cluster can be reached, once: `node operator/cmd/sponsor.ts`, or `sponsor` as the first argument of the image. Its account in that cluster needs get, create and patch of Secrets in `--namespace`, where it keeps `sponsored-NAME`, an account a customer, `sponsor-outbox-…`, its transactions, and `sponsor-early-reversals`. It must be stopped before another one is started with the same key. After any crash it goes on from these Secrets and the chain; `/readyz` says when no round comes to its end.',
    '',
    '```sh',
    'node operator/cmd/sponsor.ts --key-file sponsor.key --chain 42161=https://rpc.example --escrow 0x… --token 0x… \\',
    '  --customers customers.json --from-block 400000000 --kubeconfig sponsor.kubeconfig \\',
    '  --webhook-secret-file whsec --webhook-port 8081    # behind an ingress that ends TLS, at https://…/webhooks/stripe',
    "# the customer's operator locks little of its own, and leaves the rest to the sponsor",
    'node operator/cmd/operator.ts --deposit-seconds 300 …',
    '# at the end of the month; no key is needed',
    'node operator/cmd/sponsor.ts invoice acme --month 2026-11 --customers customers.json --kubeconfig sponsor.kubeconfig --format html',
    '```',
    '',
    'Not made here: dunning, tax, and the sponsor’s own bookkeeping of what tokens cost it. One sponsor works on one chain, in one token; two chains are two sponsors.',
    '',
    'Examples: `operator/reference/invoice-ml-2026-11.html` and `.json`, of the sandbox’s leases in USDC had they run for most of their hour.',
    '',
    `### Columns of \`gpulease focus\``,
    '',
    `FinOps FOCUS ${focusVersion}. One row is one settled escrow for which something was billed. FOCUS wants a national currency in BillingCurrency: \`--rate\` says what a token is worth in it. Columns of FOCUS that nothing here has a value for (commitment discounts, capacity reservations) are left out.`,
    '',
    '| column | type | holds |',
    '|---|---|---|',
  );
  for (const [name, { type, holds }] of Object.entries(focusColumns)) out.push(`| \`${name}\` | ${type} | ${holds} |`);
}

/** What the owner of a provider does while its gateway runs. */
function ownersControls(out: string[]): void {
  const at = `kubectl -n gpulease-system`;
  const write = (fields: string) =>
    `${at} create configmap ${controlsName} ${fields} --dry-run=client -o yaml | ${at.replace(' -n', ' apply -n')} -f -`;
  out.push(
    '',
    '## The owner of a provider',
    '',
    `While the gateway runs it watches the ConfigMap \`${controlsName}\` of its namespace; every replica follows within seconds. Without it, everything is served.`,
    '',
    '| field | meaning |',
    '|---|---|',
    '| `mode` | `Serve`. `Hold`: no new quotes and leases, those that run go on. `HoldAndDrain`: those that run are told, and end within `drainSeconds`; what was served is settled, the rest refunded. A word that is not known holds. |',
    '| `drainSeconds` | Default 600. |',
    '| `blocked` | Accounts of consumers, separated by spaces, commas or lines; `#` begins a comment. Their leases end at once, and they get no others. |',
    '| `message` | Why, as consumers are told; 200 characters. |',
    '',
    '```sh',
    '# no new leases; then: empty the cluster within five minutes; then: serve again',
    write('--from-literal=mode=Hold --from-literal=message="new switches"'),
    write('--from-literal=mode=HoldAndDrain --from-literal=drainSeconds=300'),
    `${at} delete configmap ${controlsName}`,
    '# serve this account no longer',
    write('--from-literal=blocked=0x00000000000000000000000000000000000000ff'),
    '# another price, for quotes from now on; what was signed holds',
    `kubectl patch gpuoffer h100-sxm --type merge -p '{"spec":{"prices":[{"assetSymbol":"USDC","perGpuHour":"2.49"}]}}'`,
    '```',
    '',
    'An account that never paid here gets one lease at a time, until something of it was settled (`--known-consumer` names exceptions). Accounts that have paid are in the ConfigMap `gpulease-known-consumers`.',
    '',
    `The gateway describes its protocol at \`/v1/openapi.json\`; it is in \`operator/reference/gateway-openapi.json\`. Each call by which a consumer may have changed something is one line in the gateway's log, with the fields \`audit\` (the method), \`path\`, \`leaseId\`, \`wallet\`, \`address\`, \`status\` and \`ms\`.`,
  );
}

/** Markdown of the whole reference. */
export function reference(): string {
  const out = [
    '<!-- Generated by `npm run generate`. Do not edit. -->',
    '# Reference',
    '',
    `API group and version: \`${apiVersion}\`.`,
    '',
  ];
  for (const kind of kinds) {
    out.push(
      `## ${kind.kind}`,
      '',
      `${kind.description} ${kind.scope}; short name \`${kind.shortNames.join('`, `')}\`.`,
      '',
    );
    for (const [title, schema] of [
      ['spec', kind.spec],
      ['status', kind.status],
    ] as const) {
      out.push(`### ${kind.kind}.${title}`, '', '| field | type | default | meaning |', '|---|---|---|---|');
      rows(z.toJSONSchema(schema, { target: 'openapi-3.0', io: 'input' }) as Field, '', out);
      out.push('');
    }
  }
  out.push('## GPU models', '', '| model | nvidia.com/gpu.product |', '|---|---|');
  for (const [model, products] of Object.entries(gpuModels)) out.push(`| ${model} | ${products.join(', ')} |`);
  out.push(
    '',
    '## Conditions and reasons',
    '',
    `A lease passes ${lifeConditions.map((c) => `\`${c}\``).join(' → ')}; the first that is not True is where it stands.`,
    '',
  );
  const list = (title: string, words: readonly string[]) =>
    out.push(`- ${title}: ${words.map((w) => `\`${w}\``).join(', ')}.`);
  list('Why a lease is not Ready, the strongest first', pendingReasons);
  list('Why a lease ended', endReasons);
  list('Provider', providerReasons);
  list('Budget', budgetReasons);
  out.push('', '## Refusals of a gateway', '', '| reason | meaning |', '|---|---|');
  for (const [reason, meaning] of Object.entries(gatewayReasons)) out.push(`| \`${reason}\` | ${meaning} |`);
  ownersControls(out);
  out.push(
    '',
    '## Admission policies',
    '',
    'In `crds/policies/`, applied after the kinds. Those that add something need Kubernetes 1.36, those that refuse 1.30. Without them pods must bring their own node selector and tolerations, a pod that may not use a lease fails on its node instead of waiting, and DaemonSets that tolerate everything have a Pending pod on each leased node.',
    '',
    '| policy | effect | when it cannot be evaluated |',
    '|---|---|---|',
  );
  for (const { name, effect, failure } of policies)
    out.push(
      `| \`${name}\` | ${cell(effect)} | ${failure === 'Fail' ? 'the request is refused' : 'the request passes'} |`,
    );
  podFields(out);
  storage(out);
  papers(out);
  accountsOf(out);
  out.push('', '## Labels and taints', '');
  for (const value of new Set([...Object.values(labels), `${accessLabelPrefix}NAMESPACE`, ...Object.values(taints)]))
    out.push(`- \`${value}\``);
  return `${out.join('\n')}\n`;
}
