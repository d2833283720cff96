/**
 * How soon a container of the image is ready: from the moment in which the runtime is told to start it until /readyz says yes,
 * with what a cluster gives it: no root, a file system that cannot be written, no capabilities.
 */
import { chmodSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { applyManifests } from '../../adapters/kube/apply-manifests.ts';
import { customResourceDefinition } from '../../api/crd.ts';
import { kinds } from '../../api/kinds.ts';
import { connectCluster } from '../../engine/cluster.ts';
import { startPlane } from '../clusters/plane.ts';
import { ensureDocker } from '../kind/docker.ts';
import { freePorts, type Report } from '../processes.ts';
import { ensureTools } from '../tools/tools.ts';
import type { Builder } from './builder.ts';

const RUNS = 3;

/** Seconds, the middle of three runs. `help` is a program that only starts; `operator` one that has seen its cluster. */
export async function timeToReady(
  builder: Builder,
  tag: string,
  dir: string,
  report: Report,
  signal?: AbortSignal,
): Promise<{ readonly help: number; readonly operator: number }> {
  const docker = await ensureDocker(report, signal);
  const stops: (() => Promise<unknown>)[] = [() => docker.stop()];
  try {
    mkdirSync(dir, { recursive: true });
    const archive = join(dir, 'image.tar');
    await builder.save(tag, archive, signal);
    await docker.run(['load', '--quiet', '--input', archive], { signal, timeoutSeconds: 900 });
    rmSync(archive);
    const tools = await ensureTools({ need: ['plane'], report }, signal);
    report('starting a control plane for the operator to look at');
    const plane = await startPlane({ name: 'image', dir: join(dir, 'plane'), tools, report }, signal);
    stops.push(() => plane.stop());
    const cluster = connectCluster({ name: 'image', kubeconfig: plane.kubeconfig });
    await applyManifests(cluster, kinds.map(customResourceDefinition), { fieldManager: 'image' }, signal);
    const files = join(dir, 'files');
    mkdirSync(files, { recursive: true });
    writeFileSync(join(files, 'kubeconfig'), plane.kubeconfig);
    writeFileSync(join(files, 'wallet'), `0x${'11'.repeat(32)}`); // holds nothing, and nothing is signed by it
    for (const name of ['kubeconfig', 'wallet']) chmodSync(join(files, name), 0o644);

    const locked = [
      ...['--read-only', '--cap-drop', 'ALL', '--security-opt', 'no-new-privileges', '--network', 'host'],
      ...['--volume', `${files}:/files:ro`, '--label', 'gpulease.dev/measured=true'],
    ];
    const once = async (args: readonly string[], done: (name: string) => Promise<void>) => {
      const name = `gpulease-ready-${process.pid}`;
      await docker.run(['create', '--name', name, ...locked, tag, ...args], { signal });
      try {
        const since = Date.now();
        await docker.run(['start', name], { signal });
        await done(name);
        return (Date.now() - since) / 1000;
      } finally {
        await docker.run(['rm', '--force', name]);
      }
    };
    const times = async (
      args: (port: number) => readonly string[],
      done: (name: string, port: number) => Promise<void>,
    ) => {
      const seconds: number[] = [];
      for (let run = 0; run < RUNS; run++) {
        const [port = 0] = await freePorts(1);
        seconds.push(await once(args(port), (name) => done(name, port)));
      }
      return Math.round(seconds.sort((a, b) => a - b)[Math.floor(RUNS / 2)]! * 100) / 100;
    };

    const help = await times(
      () => ['operator', '--help'],
      async (name) => {
        const status = (await docker.run(['wait', name], { signal, timeoutSeconds: 60 })).trim();
        if (status !== '0') throw new Error(`${tag} operator --help ended with status ${status}`);
      },
    );
    const operator = await times(
      (port) => [
        ...['operator', '--kubeconfig', '/files/kubeconfig', '--wallet-key-file', '/files/wallet'],
        ...['--chain', '31337=http://127.0.0.1:9', '--max-escrow', 'USDC=1', '--node-address', '127.0.0.1'],
        ...['--operations-port', String(port), '--leader-election', 'off'],
      ],
      async (name, port) => {
        for (const deadline = Date.now() + 60_000; ; await sleep(10, undefined, { signal })) {
          const answer = await fetch(`http://127.0.0.1:${port}/readyz`).catch(() => undefined);
          if (answer?.ok) return;
          if (Date.now() < deadline) continue;
          throw new Error(`the operator was not ready within a minute:\n${await docker.run(['logs', name])}`);
        }
      },
    );
    report(`ready after ${operator} s (a program that only starts: ${help} s)`);
    return { help, operator };
  } finally {
    for (const stop of stops.reverse())
      await stop().catch((error: Error) => report(`while clearing up: ${error.message}`));
    rmSync(dir, { recursive: true, force: true });
  }
}
