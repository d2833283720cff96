/** The papers of the leases that a sandbox has settled: verified by signatures, sums and chain, and written where asked. */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { chainWordsOf, proofsOf } from '../adapters/chain/receipt-proofs.ts';
import { receiptsInCluster } from '../adapters/kube/receipt-source.ts';
import type { Receipt } from '../api/receipt.ts';
import { receiptField, receiptSecretType, receiptSelector } from '../controllers/consumer/receipts.ts';
import { focusCsv, focusRows } from '../core/receipt/focus.ts';
import { monthOf } from '../core/receipt/period.ts';
import { type Statement, statementMarkdown, statementOf } from '../core/receipt/statement.ts';
import { faultsOf } from '../core/receipt/verify.ts';
import { namespace, type Sandbox } from './sandbox.ts';
import { escrowClient, ScenarioError } from './scenario.ts';

export interface Papers {
  /** Oldest first. */
  readonly receipts: readonly Receipt[];
  /** Of namespace ml, for the month of the first receipt. */
  readonly statement: Statement;
}

/** Throws ScenarioError when a receipt is not true. */
export async function papersOf(sandbox: Sandbox, signal?: AbortSignal): Promise<Papers> {
  const secret = { type: receiptSecretType, field: receiptField };
  const found = await receiptsInCluster(sandbox.consumerCluster, namespace, receiptSelector(), secret, signal);
  const client = await escrowClient(sandbox);
  const receipts: Receipt[] = [];
  for (const { receipt, raw, from, faults } of found) {
    const wrong = receipt
      ? faultsOf(
          receipt,
          await proofsOf(receipt, raw, client.rpc),
          { provider: sandbox.providerAddress, consumer: sandbox.wallet },
          await chainWordsOf(receipt, client, signal),
        )
      : faults;
    if (wrong.length > 0) throw new ScenarioError(`${from} is not true: ${JSON.stringify(wrong)}`);
    receipts.push(receipt!);
  }
  receipts.sort((a, b) => a.settlement.closingAt - b.settlement.closingAt);
  const [first] = receipts;
  if (!first) throw new ScenarioError('no settled lease left a receipt');
  const month = monthOf(first.settlement.closingAt);
  return { receipts, statement: statementOf(receipts, { clusterUid: first.lease.clusterUid, namespace: 'ml', month }) };
}

/** A token of the sandbox is worth one of its coins: nobody else would say so. */
const rates = new Map([
  ['USDC', '1'],
  ['GPU', '1.02'],
]);

/** Receipts, statement and charges, as `gpulease` would write them. Answers with the paths. */
export async function writePapers({ receipts, statement }: Papers, dir: string): Promise<string[]> {
  await mkdir(dir, { recursive: true });
  const files = new Map([
    ...receipts.map((receipt): [string, string] => [
      `receipt-${receipt.lease.namespace}-${receipt.lease.name}.json`,
      `${JSON.stringify(receipt, null, 2)}\n`,
    ]),
    [`statement-${statement.namespace}-${statement.month}.md`, statementMarkdown(statement)],
    [`focus-${statement.month}.csv`, focusCsv(focusRows(receipts, { currency: 'USD', rates }))],
  ]);
  for (const [name, content] of files) await writeFile(join(dir, name), content);
  return [...files.keys()].map((name) => join(dir, name));
}
