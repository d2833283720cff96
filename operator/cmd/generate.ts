/**
 * Writes what is generated from sources of truth: `crds/` from the Zod schemas, with the admission policies, the
 * DeviceClass and the StorageClass in folders of their own, what of `charts/` follows from the code, contract ABIs from Solidity,
 * the reference from the registries, the gateway's OpenAPI document and the example papers beside it. `--verify` writes nothing,
 * and fails when a committed file differs from its source.
 */
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { dump } from 'js-yaml';
import { customResourceDefinition } from '../api/crd.ts';
import { deviceClass } from '../api/device-class.ts';
import { kinds } from '../api/kinds.ts';
import { group } from '../api/labels.ts';
import { openApi } from '../api/openapi.ts';
import { policies } from '../api/policies.ts';
import { csiDriver, storageClass } from '../api/storage-class.ts';
import { generateContracts } from '../contracts/generate.ts';
import { chartFiles, generatedChartFolders } from './charts/write.ts';
import { examplePapers } from './example-papers.ts';
import { reference } from './reference.ts';

const root = join(dirname(fileURLToPath(import.meta.url)), '../..');

/** Path from the repository's root → content. */
async function everything(): Promise<Map<string, string>> {
  const files = new Map<string, string>();
  const header = '# Generated from operator/api by `npm run generate`. Do not edit.\n';
  for (const kind of kinds) {
    const yaml = dump(customResourceDefinition(kind), { lineWidth: 120, noRefs: true });
    files.set(`crds/${group}_${kind.plural}.yaml`, header + yaml);
  }
  files.set(
    `crds/devices/${deviceClass.metadata.name}_deviceclass.yaml`,
    header + dump(deviceClass, { lineWidth: 120, noRefs: true }),
  );
  files.set(
    `crds/storage/${storageClass.metadata.name}_storageclass.yaml`,
    header + dump(storageClass, { lineWidth: 120, noRefs: true }),
  );
  files.set(
    `crds/storage/${csiDriver.metadata.name}_csidriver.yaml`,
    header + dump(csiDriver, { lineWidth: 120, noRefs: true }),
  );
  for (const { name, manifests } of policies) {
    const documents = manifests.map((manifest) => dump(manifest, { lineWidth: 120, noRefs: true }));
    files.set(`crds/policies/${name}.yaml`, header + documents.join('---\n'));
  }
  for (const [path, content] of chartFiles(root)) files.set(path, content);
  for (const [path, content] of await generateContracts()) files.set(path, content);
  files.set('operator/reference/gateway-openapi.json', `${JSON.stringify(openApi('v1'), undefined, 2)}\n`);
  files.set('operator/REFERENCE.md', reference());
  for (const [path, content] of await examplePapers()) files.set(path, content);
  return files;
}

/** Files in wholly generated folders that nothing generates any more. */
async function leftovers(files: ReadonlyMap<string, string>): Promise<string[]> {
  const folders = await Promise.all(
    ['crds', 'operator/reference', ...generatedChartFolders].map((folder) =>
      readdir(join(root, folder), { recursive: true, withFileTypes: true }).catch(() => []),
    ),
  );
  const found = folders.flat();
  const present = found.filter((one) => one.isFile()).map((one) => relative(root, join(one.parentPath, one.name)));
  return present.filter((path) => !files.has(path));
}

const { values } = parseArgs({ options: { verify: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } });
if (values.help) {
  console.log(
    'Usage: npm run generate            write all generated files\n       npm run verify              fail if a committed generated file is stale',
  );
  process.exit(0);
}
const files = await everything();
const stale: string[] = [];
for (const [path, content] of files) {
  const present = await readFile(join(root, path), 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  });
  if (present === content) continue;
  stale.push(path);
  if (values.verify) continue;
  await mkdir(dirname(join(root, path)), { recursive: true });
  await writeFile(join(root, path), content);
}
const extra = await leftovers(files);
if (values.verify && stale.length + extra.length > 0) {
  console.error(
    `Stale generated files: ${[...stale, ...extra].join(', ')}\nRun \`npm run generate\`${extra.length ? ' and delete those that nothing generates' : ''}, and commit the result.`,
  );
  process.exit(1);
}
console.log(
  values.verify
    ? `${files.size} generated files are up to date`
    : `${files.size} files, ${stale.length} written${stale.length ? `: ${stale.join(', ')}` : ''}`,
);
