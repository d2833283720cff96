/** The command as people run it: what it prints, and with which status it ends. */
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, describe, expect, test } from 'vitest';
import { runGpulease } from '../../../operator/cmd/run-gpulease.ts';

const papers = 'operator/reference';
const dir = mkdtempSync(join(tmpdir(), 'paper-cmd-'));
afterAll(() => rmSync(dir, { recursive: true }));

const train = readFileSync(join(papers, 'receipt-ml-train.json'), 'utf8');
const written = (name: string, text: string) => {
  const file = join(dir, name);
  writeFileSync(file, text);
  return file;
};
const tampered = written('tampered.json', train.replace('"claimed": "2927"', '"claimed": "2928"'));

async function run(args: readonly string[], input = '') {
  let [out, err] = ['', ''];
  const code = await runGpulease(args, {
    env: { KUBECONFIG: join(dir, 'none') },
    stdin: async () => input,
    out: (text) => {
      out += text;
    },
    err: (text) => {
      err += text;
    },
  });
  return { code, out, err };
}

describe('gpulease', () => {
  test('verifies the papers of the reference', async () => {
    const { code, out } = await run(['receipt', 'verify', papers]);
    expect(code).toBe(0);
    expect(out.match(/^TRUE /gm)).toHaveLength(3);
  });

  test('names the fault of a tampered one, with field, figure and what it should be', async () => {
    const { code, out } = await run(['receipt', 'verify', tampered, papers]);
    expect(code).toBe(1);
    expect(out).toContain('Claimed: settlement.claimed is 2928; expected 2927');
    expect(out.match(/^TRUE /gm)).toHaveLength(3);
  });

  test('gives verdicts to programs', async () => {
    const { code, out } = await run(['receipt', 'verify', '-', '--format', 'json'], readFileSync(tampered, 'utf8'));
    expect(code).toBe(1);
    expect(JSON.parse(out)).toMatchObject([{ verdict: 'false', faults: [{ fault: 'Claimed' }, { fault: 'Seal' }] }]);
    const csv = await run(['receipt', 'verify', '--format', 'csv', tampered]);
    expect(csv.out).toContain(',false,Claimed,settlement.claimed,2928,2927\r\n');
  });

  test('archives, and verifies the archive', async () => {
    const archive = written('archive.json', (await run(['receipt', 'list', '--from', papers, '--format', 'json'])).out);
    const { code, out } = await run(['receipt', 'verify', archive]);
    expect([code, out.match(/^TRUE /gm)?.length]).toEqual([0, 3]);
  });

  test('makes statement and charges again, to the byte', async () => {
    const of = ['--from', papers, '--lease-namespace', 'ml', '--month', '2026-11'];
    const statement = await run(['statement', ...of]);
    expect(statement.out).toBe(readFileSync(join(papers, 'statement-ml-2026-11.md'), 'utf8'));
    const focus = await run(['focus', ...of, '--rate', 'USDC=1', '--rate', 'GPU=1.02']);
    expect(focus.out).toBe(readFileSync(join(papers, 'focus-2026-11.csv'), 'utf8'));
  });

  test('makes nothing of receipts that are not true', async () => {
    const { code, out, err } = await run(['focus', '--from', tampered, '--rate', 'USDC=1']);
    expect([code, out]).toEqual([1, '']);
    expect(err).toContain('Claimed: settlement.claimed');
  });

  const malformed: [string, object, string][] = [
    ['another version', { version: 'gpulease.dev/receipt/v9' }, 'Malformed: version is "gpulease.dev/receipt/v9"'],
    ['a price that is no number', { asset: { symbol: 'USDC', decimals: 'six' } }, 'Malformed: asset.decimals is "six"'],
    ['no voucher', { voucher: undefined }, 'Malformed: voucher is nothing'],
  ];
  test.each(malformed)('names the field of %s', async (name, change, says) => {
    const file = written(`${name}.json`, JSON.stringify({ ...JSON.parse(train), ...change }));
    const { code, out } = await run(['receipt', 'verify', file]);
    expect(code).toBe(1);
    expect(out).toContain(says);
  });

  const mistakes: [string, string[], number, RegExp][] = [
    ['no command', [], 2, /say what to do/],
    ['an unknown command', ['receipt', 'burn'], 2, /no command "receipt burn"/],
    ['an unknown flag', ['receipt', 'list', '--from', papers, '--colour'], 2, /--colour/],
    ['a month that is none', ['statement', '--month', '2026-13'], 2, /--month must be a month/],
    ['a statement of nothing in particular', ['statement', '--from', papers], 2, /--lease-namespace and --month/],
    ['a rate that is missing', ['focus', '--from', papers, '--rate', 'USDC=1'], 2, /--rate GPU=/],
    ['a rate that is none', ['focus', '--from', papers, '--rate', 'USDC=one', '--rate', 'GPU=1'], 2, /USDC=one/],
    ['no kubeconfig', ['receipt', 'list'], 2, /there is no kubeconfig .*--from/],
    ['a file that is not there', ['receipt', 'verify', join(dir, 'gone.json')], 3, /cannot be read \(ENOENT\)/],
    ['a file that is no JSON', ['receipt', 'verify', 'README.md'], 3, /README.md is not JSON/],
    ['a folder without receipts', ['receipt', 'verify', 'crds'], 3, /holds no receipts/],
    ['a receipt that is not there', ['receipt', 'show', 'other', '--from', papers], 3, /no receipt of other/],
  ];
  test.each(mistakes)('answers to %s', async (_, args, status, says) => {
    const { code, err } = await run(args);
    expect(err).toMatch(says);
    expect(code).toBe(status);
  });

  test.each([
    ['does not answer', '31337=http://127.0.0.1:1', /no endpoint|answer/],
    ['was not named', '1=http://127.0.0.1:1', /on chain 31337, of which no --chain names an endpoint/],
  ])('calls nothing true or false by a chain that %s, and still tells what is false', async (_, chain, says) => {
    const { code, out } = await run(['receipt', 'verify', papers, '--chain', chain]);
    expect([code, out.match(/^UNKNOWN /gm)?.length]).toEqual([3, 3]);
    expect(out).toMatch(says);
    const mixed = await run(['receipt', 'verify', papers, tampered, '--chain', chain]);
    expect([mixed.code, mixed.out.match(/^FALSE /gm)?.length]).toEqual([1, 1]);
  });

  test('is a program that ends with that status, and tells what it can do', async () => {
    const start = (...args: string[]) => promisify(execFile)(process.execPath, ['operator/cmd/gpulease.ts', ...args]);
    const { stdout } = await start('--help');
    expect(stdout).toContain('Exit status');
    expect(stdout).toContain('--chain ID=URL[,URL]');
    await expect(start('receipt', 'verify', tampered)).rejects.toMatchObject({ code: 1 });
  });

  test.each<[string, string[], string]>([
    ['a contract', ['--chain', '1=http://127.0.0.1:1'], '--escrow ADDRESS'],
    ['a chain', ['--escrow', `0x${'e'.repeat(40)}`], '--chain ID=URL'],
    ['a key, to send', ['--chain', '1=http://x', '--escrow', `0x${'e'.repeat(40)}`, '--yes'], '--key-file FILE'],
    [
      'a file that holds one, and shows nothing of it',
      ['--chain', '1=http://x', '--escrow', `0x${'e'.repeat(40)}`, '--key-file', written('no.key', 'hunter2hunter2')],
      'holds neither',
    ],
  ])('wants to be told of %s before it sweeps', async (_, args, words) => {
    const { code, err } = await run(['sweep', ...args]);
    expect([code, err]).toEqual([2, expect.stringContaining(words)]);
    expect(err).not.toContain('hunter2');
  });
});
