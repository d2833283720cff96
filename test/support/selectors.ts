/** Label and field selectors, as an API server reads them. */
import type { KubeObject } from '../../operator/engine/types.ts';

export function matchesLabels(object: KubeObject, selector: string): boolean {
  const labels = object.metadata.labels ?? {};
  // Commas inside parentheses belong to a set.
  return splitOutside(selector).every((term) => {
    const set = /^(\S+)\s+(in|notin)\s+\(([^)]*)\)$/.exec(term);
    if (set) {
      const values = set[3]!.split(',').map((value) => value.trim());
      const value = labels[set[1]!];
      return set[2] === 'in'
        ? value !== undefined && values.includes(value)
        : value === undefined || !values.includes(value);
    }
    const differs = /^([^!=\s]+)\s*!=\s*(\S*)$/.exec(term);
    if (differs) return labels[differs[1]!] !== differs[2];
    const equals = /^([^!=\s]+)\s*==?\s*(\S*)$/.exec(term);
    if (equals) return labels[equals[1]!] === equals[2];
    if (term.startsWith('!')) return !(term.slice(1).trim() in labels);
    if (/^\S+$/.test(term)) return term in labels;
    throw new Error(`not a label selector: ${term}`);
  });
}

export function matchesFields(object: KubeObject, selector: string): boolean {
  return splitOutside(selector).every((term) => {
    const parts = /^([^!=]+)(!=|==?)(.*)$/.exec(term);
    if (!parts) throw new Error(`not a field selector: ${term}`);
    const [, path = '', operator, wanted] = parts;
    let value: unknown = object;
    for (const name of path.split('.')) value = (value as Record<string, unknown> | undefined)?.[name];
    return (String(value ?? '') === wanted) === (operator !== '!=');
  });
}

function splitOutside(selector: string): string[] {
  return selector
    .split(/,(?![^(]*\))/)
    .map((term) => term.trim())
    .filter((term) => term !== '');
}
