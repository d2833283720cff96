/**
 * What calls cost, compared with what they did when somebody last looked: gas.json, committed. More than 5 % away, up or
 * down, is told and fails, so that a change that costs users money is a decision and not an accident.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { contractsFolder } from './forge.ts';

export type GasTable = Readonly<Record<string, number>>;
export const gasTolerance = 0.05;
const file = join(contractsFolder, 'gas.json');

export const readGas = async (): Promise<GasTable> => JSON.parse(await readFile(file, 'utf8')) as GasTable;

export const writeGas = (now: GasTable): Promise<void> => writeFile(file, `${JSON.stringify(now, null, 2)}\n`);

/** One line for each call that is not as it was. */
export function compareGas(before: GasTable, now: GasTable): string[] {
  const lines: string[] = [];
  for (const [call, gas] of Object.entries(now)) {
    const was = before[call];
    if (was === undefined) {
      lines.push(`gas of "${call}" is not in gas.json: --update-gas writes it`);
      continue;
    }
    const drift = (gas - was) / was;
    if (Math.abs(drift) <= gasTolerance) continue;
    const percent = `${drift > 0 ? '+' : ''}${(drift * 100).toFixed(1)} %`;
    lines.push(`gas of "${call}" is ${gas}, was ${was}: ${percent}. If that is meant, --update-gas writes it down`);
  }
  for (const call of Object.keys(before)) {
    if (!(call in now)) lines.push(`gas of "${call}" is in gas.json and was not measured: --update-gas takes it out`);
  }
  return lines;
}
