/**
 * Clusters for integration tests. Planes are shared by all files of a run, because starting two costs seconds and a gigabyte;
 * each file takes namespaces of its own in them. As vitest's globalSetup this file starts them once, before the first test.
 */
import { randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { openPlane, type Plane, type PlaneAccess, startPlane } from '../../operator/sandbox/clusters/plane.ts';
import type { Report } from '../../operator/sandbox/processes.ts';
import { ensureTools } from '../../operator/sandbox/tools/tools.ts';

export interface TestPlanes {
  readonly consumer: PlaneAccess;
  readonly provider: PlaneAccess;
}

/** How a test file's process finds what globalSetup has started in another one: workers inherit the environment. */
const SHARED = 'GPULEASE_TEST_PLANES';

/** What takes long is always shown: a person who waits for a build wants to know it. */
export const quiet: Report = (line) => {
  if (process.env.GPULEASE_VERBOSE || /^(building|built|installing|installed|waiting)\b/.test(line)) {
    process.stderr.write(`${line}\n`);
  }
};

let mine: Promise<TestPlanes> | undefined;

/** Two control planes without nodes. Shared: never kill or restart these; for faults start one with `startPlane`. */
export function planes(): Promise<TestPlanes> {
  mine ??= (async () => {
    const dir = process.env[SHARED];
    if (!dir) return startBoth(scratch('planes'));
    const [consumer, provider] = await Promise.all([
      openPlane(join(dir, 'consumer')),
      openPlane(join(dir, 'provider')),
    ]);
    return { consumer, provider };
  })();
  return mine;
}

async function startBoth(dir: string): Promise<{ readonly consumer: Plane; readonly provider: Plane }> {
  const tools = await ensureTools({ need: ['plane'], report: quiet });
  const start = (name: string) => startPlane({ name, dir: join(dir, name), tools, report: quiet });
  const [consumer, provider] = await Promise.all([start('consumer'), start('provider')]);
  return { consumer, provider };
}

/** vitest's globalSetup; what it returns is called after the last test. */
export async function setup(): Promise<() => Promise<void>> {
  const dir = scratch('planes');
  const { consumer, provider } = await startBoth(dir);
  process.env[SHARED] = dir;
  return async () => {
    await Promise.all([consumer.stop(), provider.stop()]);
    rmSync(dir, { recursive: true, force: true });
  };
}

/** A fresh folder that no other run uses. */
export function scratch(name: string): string {
  mkdirSync(join(tmpdir(), 'gpulease-test'), { recursive: true, mode: 0o700 });
  return mkdtempSync(join(tmpdir(), 'gpulease-test', `${name}-`));
}

export interface TestNamespace {
  readonly name: string;
  remove(): Promise<void>;
}

/** Pods may be made in it at once: its default ServiceAccount is there. */
export async function testNamespace(plane: PlaneAccess, prefix: string): Promise<TestNamespace> {
  const name = `${prefix}-${randomBytes(4).toString('hex')}`;
  await plane.api.call('POST', '/api/v1/namespaces', { apiVersion: 'v1', kind: 'Namespace', metadata: { name } });
  const account = `/api/v1/namespaces/${name}/serviceaccounts/default`;
  await eventually(async () => (await plane.api.request('GET', account)).status === 200, 'the default ServiceAccount');
  return {
    name,
    async remove() {
      await plane.api.call('DELETE', `/api/v1/namespaces/${name}`);
    },
  };
}

/** Waits until `holds` returns true; an error of its own counts as "not yet" and is shown at the end. */
export async function eventually(holds: () => Promise<boolean>, what: string, timeoutSeconds = 30): Promise<void> {
  const deadline = Date.now() + timeoutSeconds * 1000;
  let last: unknown;
  for (;;) {
    try {
      if (await holds()) return;
    } catch (error) {
      last = error;
    }
    if (Date.now() > deadline) throw new Error(`waited ${timeoutSeconds} s for ${what}`, { cause: last });
    await sleep(50);
  }
}
