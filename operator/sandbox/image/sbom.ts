/**
 * The image's bill of materials, CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/): each package whose code is in the
 * bundles, as the lock file pins it, and Node.js. What the base image's distribution brought is in that image's own.
 */
import { createHash } from 'node:crypto';

/** What we read of package-lock.json, version 3. */
export interface LockFile {
  readonly name?: string;
  readonly version?: string;
  readonly packages: Readonly<Record<string, LockedPackage>>;
}

export interface LockedPackage {
  readonly version?: string;
  readonly license?: string;
  /** Subresource integrity: one or more of ALGORITHM-BASE64. */
  readonly integrity?: string;
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
  readonly peerDependencies?: Readonly<Record<string, string>>;
}

/**
 * The packages that files come from, as their paths in the lock file. Throws when one is not in it: what ships is what is
 * locked.
 */
export function bundledPackages(files: readonly string[], lock: LockFile): string[] {
  const found = new Set<string>();
  for (const file of files) {
    const path = /^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(file)?.[1];
    if (path === undefined) continue; // ours
    if (!lock.packages[path]) throw new Error(`${file} is bundled, and ${path} is not in package-lock.json`);
    found.add(path);
  }
  return [...found].sort();
}

export interface SbomOptions {
  readonly lock: LockFile;
  /** Of `bundledPackages`. */
  readonly packages: readonly string[];
  readonly nodeVersion: string;
  readonly at: Date;
}

export function sbomOf({ lock, packages, nodeVersion, at }: SbomOptions) {
  const included = new Set(packages);
  const own = { name: lock.name ?? 'gpulease', version: lock.version ?? '0.0.0' };
  const ownRef = purlOf(own.name, own.version);
  const node = {
    type: 'platform',
    'bom-ref': `pkg:generic/node@${nodeVersion}`,
    name: 'node',
    version: nodeVersion,
    purl: `pkg:generic/node@${nodeVersion}`,
  };
  const components = packages.map((path) => {
    const { version = '', license, integrity } = lock.packages[path]!;
    const name = nameOf(path);
    const [group, short] = name.startsWith('@') ? name.split('/', 2) : [undefined, name];
    return {
      type: 'library',
      'bom-ref': refOf(path, lock),
      ...(group && { group }),
      name: short!,
      version,
      purl: purlOf(name, version),
      ...(license && { licenses: [/[ ()]/.test(license) ? { expression: license } : { license: { id: license } }] }),
      ...(integrity && { hashes: hashesOf(integrity) }),
      scope: 'required',
    };
  });
  const dependencies = [
    { ref: ownRef, dependsOn: [node['bom-ref'], ...dependsOn('', lock, included)] },
    { ref: node['bom-ref'], dependsOn: [] },
    ...packages.map((path) => ({ ref: refOf(path, lock), dependsOn: dependsOn(path, lock, included) })),
  ];
  const body = {
    bomFormat: 'CycloneDX',
    specVersion: '1.6',
    version: 1,
    metadata: {
      timestamp: at.toISOString().replace('.000Z', 'Z'),
      component: { type: 'application', 'bom-ref': ownRef, name: own.name, version: own.version, purl: ownRef },
    },
    components: [node, ...components],
    dependencies,
  };
  const { bomFormat, specVersion, ...rest } = body;
  // Named by what it says, so that the same image has the same bill.
  return { bomFormat, specVersion, serialNumber: `urn:uuid:${uuidOf(JSON.stringify(body))}`, ...rest };
}

const nameOf = (path: string) => path.slice(path.lastIndexOf('node_modules/') + 'node_modules/'.length);

const purlOf = (name: string, version: string) => `pkg:npm/${name.replace(/^@/, '%40')}@${version}`;

/** Two copies of one version may be in the bundle, each in a place of its own. */
function refOf(path: string, lock: LockFile): string {
  const purl = purlOf(nameOf(path), lock.packages[path]?.version ?? '');
  return path.indexOf('node_modules/') === path.lastIndexOf('node_modules/') ? purl : `${purl}#${path}`;
}

/** Those of its dependencies that are in the bundle, found as Node.js finds them: the nearest folder above. */
function dependsOn(path: string, lock: LockFile, included: ReadonlySet<string>): string[] {
  const { dependencies, optionalDependencies, peerDependencies } = lock.packages[path] ?? {};
  const names = Object.keys({ ...dependencies, ...optionalDependencies, ...peerDependencies }).sort();
  return names.flatMap((name) => {
    for (let at = path; ; at = at.includes('/node_modules/') ? at.slice(0, at.lastIndexOf('/node_modules/')) : '') {
      const candidate = `${at === '' ? '' : `${at}/`}node_modules/${name}`;
      if (lock.packages[candidate]) return included.has(candidate) ? [refOf(candidate, lock)] : [];
      if (at === '') return [];
    }
  });
}

const algorithms: Readonly<Record<string, string>> = {
  sha1: 'SHA-1',
  sha256: 'SHA-256',
  sha384: 'SHA-384',
  sha512: 'SHA-512',
};

function hashesOf(integrity: string) {
  return integrity.split(/\s+/).flatMap((one) => {
    const [, name = '', base64 = ''] = /^([a-z0-9]+)-(.+)$/.exec(one) ?? [];
    const alg = algorithms[name];
    return alg ? [{ alg, content: Buffer.from(base64, 'base64').toString('hex') }] : [];
  });
}

/** A UUID of version 5's form, of a text. */
function uuidOf(text: string): string {
  const hex = createHash('sha256').update(text).digest('hex');
  const variant = ((Number.parseInt(hex[16]!, 16) & 0x3) | 0x8).toString(16);
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-5${hex.slice(13, 16)}-${variant}${hex.slice(17, 20)}-${hex.slice(20, 32)}`;
}
