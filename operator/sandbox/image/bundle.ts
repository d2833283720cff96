/**
 * What the image holds beside Node.js: our programs as a few JavaScript files, package.json for their version, the bill of
 * materials and the licences of what is in them. Run by the Dockerfile, `node operator/sandbox/image/bundle.ts FOLDER`.
 *
 * Nothing of it depends on the machine that it is made on: no package with native code, no time but SOURCE_DATE_EPOCH.
 */
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { build, type Metafile } from 'esbuild';
import { bundledPackages, type LockFile, sbomOf } from './sbom.ts';

const root = join(import.meta.dirname, '../../..');

/** Same path below the root as in the repository: programs find package.json from where they are. */
const ENTRY = 'operator/cmd/gpulease';
/** Loaded only where a kubeconfig needs it, by its name (`engine/kubeconfig.ts`), so it stays a package of its own. */
const ON_DEMAND = '@kubernetes/client-node';

// Packages in CommonJS ask for others by `require`, which files of ES modules do not have.
const banner = {
  js: "import { createRequire as createRequireOfBundle } from 'node:module';\nconst require = createRequireOfBundle(import.meta.url);",
};

export interface Bundle {
  /** Paths of packages in the lock file, sorted. */
  readonly packages: readonly string[];
}

/** Empties `folder` and writes everything into it. */
export async function writeBundle(folder: string, env: NodeJS.ProcessEnv = process.env): Promise<Bundle> {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const common = {
    absWorkingDir: root,
    bundle: true,
    platform: 'node',
    target: 'node24',
    // Names and lines stay, so that a stack trace says where; what it would save is a few megabytes of disk. `keepNames` would say the
    // same of functions whose names met another's, and would give each function object a table of its own: 50 KB a virtual node.
    minify: false,
    legalComments: 'none',
    metafile: true,
    logLevel: 'error',
  } as const;
  const [programs, onDemand] = await Promise.all([
    build({
      ...common,
      entryPoints: { [ENTRY]: `${ENTRY}.ts` },
      outdir: folder,
      format: 'esm',
      // A command loads what it needs and no more.
      splitting: true,
      chunkNames: `${dirname(ENTRY)}/[name]-[hash]`,
      banner,
    }),
    build({
      ...common,
      entryPoints: [ON_DEMAND],
      outfile: join(folder, 'node_modules', ON_DEMAND, 'index.mjs'),
      format: 'esm',
      keepNames: true,
      banner,
    }),
  ]);
  const lock = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')) as LockFile;
  const { name, version, description, license } = manifestOf();
  writeJson(join(folder, 'package.json'), { name, version, description, license, type: 'module' });
  writeJson(join(folder, 'node_modules', ON_DEMAND, 'package.json'), {
    name: ON_DEMAND,
    version: lock.packages[`node_modules/${ON_DEMAND}`]?.version,
    exports: './index.mjs',
  });
  const inputs = [programs.metafile, onDemand.metafile].flatMap((meta: Metafile) => Object.keys(meta.inputs));
  const packages = bundledPackages(inputs, lock);
  const seconds = Number(env.SOURCE_DATE_EPOCH ?? 0);
  if (!Number.isSafeInteger(seconds) || seconds < 0)
    throw new Error(`SOURCE_DATE_EPOCH must be seconds since 1970; given: ${env.SOURCE_DATE_EPOCH}`);
  const sbom = sbomOf({ lock, packages, nodeVersion: process.version.slice(1), at: new Date(seconds * 1000) });
  writeJson(join(folder, 'sbom.cdx.json'), sbom);
  copyFileSync(join(root, 'LICENSE'), join(folder, 'LICENSE'));
  writeFileSync(join(folder, 'THIRD-PARTY-LICENCES.txt'), licencesOf(packages, lock));
  return { packages };
}

function manifestOf(): Record<'name' | 'version' | 'description' | 'license', string> {
  return JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
}

function licencesOf(packages: readonly string[], lock: LockFile): string {
  return packages
    .map((path) => {
      const folder = join(root, path);
      const files = existsSync(folder)
        ? readdirSync(folder)
            .filter((file) => /^(licen[cs]e|copying|notice)/i.test(file))
            .sort()
        : [];
      const { version, license } = lock.packages[path] ?? {};
      const head = `${path.slice(path.lastIndexOf('node_modules/') + 'node_modules/'.length)} ${version} (${license ?? 'no licence named'})`;
      return [head, ...files.map((file) => readFileSync(join(folder, file), 'utf8').trim())].join('\n\n');
    })
    .join(`\n\n${'-'.repeat(80)}\n\n`)
    .concat('\n');
}

function writeJson(file: string, value: unknown): void {
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, `${JSON.stringify(value, null, 2)}\n`);
}

if (import.meta.main) {
  const [folder] = process.argv.slice(2);
  if (!folder) throw new Error('usage: node operator/sandbox/image/bundle.ts FOLDER');
  const { packages } = await writeBundle(folder);
  console.log(`${folder}: programs of ours and of ${packages.length} packages`);
}
