import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  ETCD_VERSION,
  ensureBuilt,
  ensureTools,
  type GoBuild,
  KUBERNETES_VERSION,
  METRICS_SERVER_VERSION,
  type Need,
  type ToolPaths,
} from '../../../operator/sandbox/tools/tools.ts';

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'gpulease-tools-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const PLANE = ['etcd', 'kube-apiserver', 'kube-controller-manager', 'kube-scheduler', 'kubectl'] as const;

function program(folder: string, name: string, script: string): string {
  mkdirSync(join(dir, folder), { recursive: true });
  const path = join(dir, folder, name);
  writeFileSync(path, `#!/bin/sh\n${script}\n`);
  chmodSync(path, 0o755);
  return path;
}

/** Programs that only know their version. */
function installed(folder: string, kubernetes: string, etcd: string): string {
  for (const name of PLANE) {
    const says =
      name === 'etcd'
        ? `etcd Version: ${etcd}`
        : name === 'kubectl'
          ? `{"gitVersion": "v${kubernetes}"}`
          : `Kubernetes v${kubernetes}`;
    program(folder, name, `echo '${says}'`);
  }
  return join(dir, folder);
}

const lines: string[] = [];
function ensure(env: Record<string, string>, need: readonly Need[] = ['plane']): Promise<ToolPaths> {
  lines.length = 0;
  return ensureTools({
    need,
    report: (line) => lines.push(line),
    env: { GPULEASE_CACHE: join(dir, 'cache'), PATH: '/nowhere', ...env },
  });
}

/** A go that knows its version and "builds" by writing empty files; `go build -o X …` or `-o folder/ … packages`. */
function fakeGo(version: string, build: string): string {
  program(
    'go',
    'go',
    `PATH=/usr/bin:/bin
case "$1 $2" in
  "env GOVERSION") echo ${version} ;;
  "env GOTOOLCHAIN") echo local ;;
  *) ${build} ;;
esac`,
  );
  return join(dir, 'go');
}
const BUILDS = `out=$3; shift 5; echo "$@" >>${'$'}{0%/*}/calls; case $out in */) for p; do : >"$out$(basename $p)"; done ;; *) : >"$out" ;; esac`;

describe('another build', () => {
  const build: GoBuild = {
    what: 'a suite',
    module: 'conformance',
    tools: { 'suite.test': 'example.org/suite' },
    testProgram: true,
    cacheKey: 'suite-v1',
    ldflags: '-s -w',
    about: 'a moment',
  };
  const options = (path: string) => ({
    report: () => undefined,
    env: { GPULEASE_CACHE: join(dir, 'cache'), PATH: path },
  });

  it('of a package’s tests is made by go test, once', async () => {
    const go = fakeGo('go1.26.8', `echo "$@" >>${'$'}{0%/*}/calls; : >"$4"`);
    const folder = await ensureBuilt(build, options(go));
    expect(readdirSync(folder)).toEqual(['suite.test']);
    expect(readFileSync(join(go, 'calls'), 'utf8')).toMatch(
      /^test -c -o \S+\/suite\.test -ldflags -s -w example\.org\/suite\n$/,
    );
    expect(await ensureBuilt(build, options('/nowhere'))).toBe(folder);
  });

  it('takes away what one left that was killed', async () => {
    const left = join(dir, 'cache/gpulease/tools/suite-v1.tmp-4194305');
    mkdirSync(left, { recursive: true });
    await ensureBuilt(build, options(fakeGo('go1.26.8', ': >"$4"')));
    expect(readdirSync(join(left, '..'))).toEqual(['suite-v1']);
  });

  it('names no way around Go where there is none', async () => {
    await expect(ensureBuilt(build, options('/nowhere'))).rejects.toThrow(
      /^suite\.test must be built, and there is no Go on PATH: install Go 1\.26 or newer \(https:\/\/go\.dev\/dl\/\)$/,
    );
  });
});

describe('the programs of a control plane', () => {
  it('are taken from KUBEBUILDER_ASSETS before PATH, in another patch version too', async () => {
    const assets = installed('assets', '1.36.0', '3.6.1');
    const path = installed('path', KUBERNETES_VERSION, ETCD_VERSION);
    const tools = await ensure({ KUBEBUILDER_ASSETS: assets, PATH: path });
    expect(tools['kube-apiserver']).toBe(join(assets, 'kube-apiserver'));
    expect(tools.etcd).toBe(join(assets, 'etcd'));
    expect(lines).toEqual([]);
  });

  it('are taken from PATH one by one where KUBEBUILDER_ASSETS has another minor version', async () => {
    const assets = installed('assets', '1.35.4', ETCD_VERSION);
    const path = installed('path', KUBERNETES_VERSION, '3.5.0');
    const tools = await ensure({ KUBEBUILDER_ASSETS: assets, PATH: path });
    expect(tools.kubectl).toBe(join(path, 'kubectl'));
    expect(tools.etcd).toBe(join(assets, 'etcd'));
  });

  it('are built once, and found in the cache from then on', async () => {
    const go = fakeGo('go1.26.8', BUILDS);
    const tools = await ensure({ PATH: go });
    expect(tools.kubectl).toMatch(new RegExp(`cache/gpulease/tools/kubernetes-v${KUBERNETES_VERSION}-.*/kubectl$`));
    expect(lines[0]).toBe(`building etcd v${ETCD_VERSION} with go (once per machine, about 1 min on 2 cores) … 0 s`);
    expect(await ensure({ PATH: '/nowhere' })).toEqual(tools);
    expect(lines).toEqual([]);
  });

  it('are joined by metrics-server only where it is asked for', async () => {
    const go = fakeGo('go1.26.8', BUILDS);
    expect(await ensure({ PATH: go })).not.toHaveProperty('metrics-server');
    const tools = await ensure({ PATH: go }, ['plane', 'metrics']);
    expect(tools['metrics-server']).toMatch(
      new RegExp(`cache/gpulease/tools/metrics-server-v${METRICS_SERVER_VERSION}-.*/metrics-server$`),
    );
    expect(lines[0]).toContain(`building metrics-server v${METRICS_SERVER_VERSION} with go`);
  });

  it('leave nothing half done in the cache when building fails, and the error shows what go said', async () => {
    const go = fakeGo('go1.26.8', 'echo "no space left on device" >&2; exit 1');
    await expect(ensure({ PATH: go })).rejects.toThrow(/building etcd v.* failed \(go exit code 1\):\nno space left/);
    expect(readdirSync(join(dir, 'cache/gpulease/tools'))).toEqual([]);
  });

  it('are built by one of two processes that want them at the same time', async () => {
    const go = fakeGo('go1.26.8', `sleep 0.2; ${BUILDS}`);
    const [one, two] = await Promise.all([ensure({ PATH: go }), ensure({ PATH: go })]);
    expect(one).toEqual(two);
    expect(readFileSync(join(go, 'calls'), 'utf8').trim().split('\n')).toHaveLength(2); // etcd, and the others in one call
  });

  it('name the Go version to install, and the way around it, where there is no Go', async () => {
    await expect(ensure({})).rejects.toThrow(
      'etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl must be built, and there is no Go on PATH: ' +
        'install Go 1.26 or newer (https://go.dev/dl/), or set KUBEBUILDER_ASSETS to a folder with these programs',
    );
  });

  it('name the Go version to install where Go is too old to fetch a newer one', async () => {
    const go = fakeGo('go1.19.8', BUILDS);
    await expect(ensure({ PATH: go })).rejects.toThrow('needs Go 1.26, here is go1.19.8: install Go 1.26 or newer');
  });
});
