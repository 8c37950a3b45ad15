/** Syntax of names and labels as the Kubernetes API defines it. Each function tells what is wanted, or `undefined`: it is fine. */

const LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS_LABEL = new RegExp(`^${LABEL}$`);
const DNS_SUBDOMAIN = new RegExp(`^${LABEL}(\\.${LABEL})*$`);
const NAME_PART = /^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$/;

export const DNS_LABEL_LIMIT = 63;
export const DNS_SUBDOMAIN_LIMIT = 253;

/** RFC 1123 label. */
export const dnsLabelFault = (text: string): string | undefined =>
  text.length <= DNS_LABEL_LIMIT && DNS_LABEL.test(text)
    ? undefined
    : `lower case letters, digits and - with a letter or digit at both ends, at most ${DNS_LABEL_LIMIT} characters`;

/** RFC 1123 subdomain: labels joined by dots. */
export const dnsSubdomainFault = (text: string): string | undefined =>
  text.length <= DNS_SUBDOMAIN_LIMIT && DNS_SUBDOMAIN.test(text)
    ? undefined
    : `lower case letters, digits, - and . with a letter or digit at both ends of each part, at most ${DNS_SUBDOMAIN_LIMIT} characters`;

/** Key of a label: an optional DNS prefix and `/`, then a name of at most 63 characters. */
export function qualifiedNameFault(text: string): string | undefined {
  const slash = text.indexOf("/");
  const name = text.slice(slash + 1);
  if (slash >= 0 && dnsSubdomainFault(text.slice(0, slash)) !== undefined) {
    return "a DNS name before the /, in lower case";
  }
  if (name.length > DNS_LABEL_LIMIT || !NAME_PART.test(name)) {
    return "a key of letters, digits, -, _ and . with a letter or digit at both ends, at most 63 characters";
  }
  return undefined;
}

export const labelValueFault = (text: string): string | undefined =>
  text === "" || text.length <= DNS_LABEL_LIMIT && NAME_PART.test(text)
    ? undefined
    : "letters, digits, -, _ and . with a letter or digit at both ends, at most 63 characters";

/** IANA service name, RFC 6335 section 5.1: 1 to 15 of `a-z0-9-`, a letter among them. */
export const portNameFault = (text: string): string | undefined =>
  /^(?=.*[a-z])[a-z0-9]([a-z0-9]|-(?!-))*$/.test(text) && !text.endsWith("-") && text.length <= 15
    ? undefined
    : "a port name: 1 to 15 lower case letters, digits and single -, with a letter among them";
