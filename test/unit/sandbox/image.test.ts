import { execFile } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { writeBundle } from '../../../operator/sandbox/image/bundle.ts';
import { bundledPackages, type LockFile, sbomOf } from '../../../operator/sandbox/image/sbom.ts';

const run = promisify(execFile);
const root = join(import.meta.dirname, '../../..');

describe('the bill of materials', () => {
  const lock: LockFile = {
    name: 'gpulease',
    version: '1.2.3',
    packages: {
      '': { dependencies: { a: '1', '@scope/b': '2' } },
      'node_modules/a': { version: '1.0.0', license: 'MIT', integrity: 'sha512-AQID', dependencies: { c: '3' } },
      'node_modules/a/node_modules/c': { version: '3.0.0', license: '(MIT OR Apache-2.0)' },
      'node_modules/@scope/b': { version: '2.0.0', dependencies: { c: '4', left: '1' } },
      'node_modules/c': { version: '4.0.0' },
      'node_modules/left': { version: '1.0.0' },
    },
  };
  const files = [
    'operator/cmd/gpulease.ts',
    'node_modules/a/index.js',
    'node_modules/a/node_modules/c/lib/c.js',
    'node_modules/@scope/b/dist/b.js',
    'node_modules/c/c.js',
  ];
  const at = new Date('2026-11-26T00:00:00Z');
  const sbom = () => sbomOf({ lock, packages: bundledPackages(files, lock), nodeVersion: '24.0.0', at });

  test('names each package whose code is in the bundles, and Node.js, and nothing else', () => {
    expect(sbom().components.map(({ purl }) => purl)).toEqual([
      'pkg:generic/node@24.0.0',
      'pkg:npm/%40scope/b@2.0.0',
      'pkg:npm/a@1.0.0',
      'pkg:npm/c@3.0.0',
      'pkg:npm/c@4.0.0',
    ]);
  });

  test('gives hashes and licences as the lock file has them', () => {
    const [, , a, c3, c4] = sbom().components;
    expect(a).toMatchObject({
      hashes: [{ alg: 'SHA-512', content: '010203' }],
      licenses: [{ license: { id: 'MIT' } }],
    });
    expect(c3).toMatchObject({ licenses: [{ expression: '(MIT OR Apache-2.0)' }] });
    expect(c4).not.toHaveProperty('licenses');
  });

  test('says who depends on whom, by the copy that is nearest', () => {
    const of = (ref: string) => sbom().dependencies.find((one) => one.ref === ref)?.dependsOn;
    expect(of('pkg:npm/a@1.0.0')).toEqual(['pkg:npm/c@3.0.0#node_modules/a/node_modules/c']);
    expect(of('pkg:npm/%40scope/b@2.0.0')).toEqual(['pkg:npm/c@4.0.0']); // `left` is not bundled
    expect(of('pkg:npm/gpulease@1.2.3')).toEqual([
      'pkg:generic/node@24.0.0',
      'pkg:npm/%40scope/b@2.0.0',
      'pkg:npm/a@1.0.0',
    ]);
  });

  test('is the same for the same image, and another for another', () => {
    expect(sbom()).toEqual(sbom());
    const fewer = sbomOf({ lock, packages: ['node_modules/a'], nodeVersion: '24.0.0', at });
    expect(fewer.serialNumber).not.toBe(sbom().serialNumber);
    expect(fewer.serialNumber).toMatch(
      /^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/,
    );
  });

  test('refuses a file of a package that is not locked', () => {
    expect(() => bundledPackages(['node_modules/evil/index.js'], lock)).toThrow(
      /node_modules\/evil is not in package-lock/,
    );
  });
});

describe('the bundle', () => {
  const folder = mkdtempSync(join(tmpdir(), 'gpulease-bundle-'));
  beforeAll(() => writeBundle(folder, { SOURCE_DATE_EPOCH: '1700000000' }), 120_000);
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  // Outside the repository, so that nothing is found in its node_modules.
  const gpulease = (...args: string[]) =>
    run(process.execPath, [join(folder, 'operator/cmd/gpulease.js'), ...args], {
      cwd: '/',
      env: { PATH: '' },
      timeout: 60_000,
    });

  const entry = readFileSync(join(root, 'operator/cmd/gpulease.ts'), 'utf8');
  const programs = [...entry.matchAll(/^ {2}'?([a-z-]+)'?: \(\) => import\(/gm)].map(([, name]) => name!);

  test('has every process of both sides', () => {
    expect(programs).toEqual(expect.arrayContaining(['operator', 'wallet', 'approver', 'gateway', 'provisioner']));
  });

  test.each(programs)('starts `gpulease %s` without any other file', async (program) => {
    const { stdout } = await gpulease(program, '--help');
    expect(stdout).toContain(program);
  }, 60_000);

  test('keeps the commands of `gpulease`', async () => {
    const { stdout } = await gpulease('--help');
    expect(stdout).toContain('gpulease receipt verify');
  }, 60_000);

  test('holds what is loaded by name only', async () => {
    const script = "require('node:module').createRequire(process.argv[1])('@kubernetes/client-node').KubeConfig.name";
    const { stdout } = await run(process.execPath, ['-p', script, join(folder, 'operator/cmd/gpulease.js')], {
      cwd: '/',
    });
    expect(stdout.trim()).toBe('KubeConfig');
  }, 60_000);

  test('is dated by SOURCE_DATE_EPOCH, and says what is in it under which licence', () => {
    const sbom = JSON.parse(readFileSync(join(folder, 'sbom.cdx.json'), 'utf8'));
    expect(sbom.metadata.timestamp).toBe('2023-11-14T22:13:20Z');
    const names = sbom.components.map(({ name }: { name: string }) => name);
    expect(names).toEqual(expect.arrayContaining(['node', 'fastify', 'ethers', 'client-node', 'zod']));
    expect(names).not.toContain('vitest');
    const licences = readFileSync(join(folder, 'THIRD-PARTY-LICENCES.txt'), 'utf8');
    expect(licences).toMatch(/^fastify \d/m);
  });

  test('has no native code, so one bundle is for all architectures', () => {
    const files = readdirSync(folder, { recursive: true, encoding: 'utf8' });
    expect(files.filter((file) => /\.(node|so|wasm)$/.test(file))).toEqual([]);
  });
});

describe('the Dockerfile', () => {
  const instructions = readFileSync(join(root, 'Dockerfile'), 'utf8')
    .replaceAll(/^#.*\n/gm, '')
    .replaceAll(/\\\n\s*/g, '')
    .split('\n')
    .filter((line) => line.trim() !== '');
  const last = instructions.slice(instructions.findLastIndex((line) => line.startsWith('FROM ')));

  test('runs nothing in its last stage, so no architecture needs emulation', () => {
    expect(last.filter((line) => line.startsWith('RUN'))).toEqual([]);
  });

  test('ends as nobody, by number, so that a kubelet can tell that it is not root', () => {
    expect(last.findLast((line) => line.startsWith('USER '))).toBe('USER 65532:65532');
  });

  test('needs no shell to start', () => {
    for (const line of last.filter((one) => /^(ENTRYPOINT|CMD) /.test(one))) expect(line).toMatch(/^\w+ \["/);
  });

  test('copies what is there', () => {
    const copied = instructions
      .filter((line) => line.startsWith('COPY ') && !line.includes('--from='))
      .flatMap((line) => line.split(/\s+/).slice(1, -1));
    expect(copied.length).toBeGreaterThan(3);
    expect(copied.filter((path) => !existsSync(join(root, path)))).toEqual([]);
  });
});
