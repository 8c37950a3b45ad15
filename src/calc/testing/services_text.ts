import { formatAddress, formatCidr } from "../../model/address.ts";
import type { BackendList, ServiceFrontend, ServiceState } from "../../model/services.ts";

/** The whole content as people read it, in order: equal text, equal state. */
export function servicesText({ frontends, healthChecks, nodePortAddresses, podNets }: ServiceState): string {
  const lines = [...frontends].map(([, frontend]) => frontendText(frontend)).sort();
  for (const [port, { service, localEndpoints }] of healthChecks) {
    lines.push(`check ${port} ${service} ${localEndpoints}`);
  }
  return [
    ...lines.sort(),
    `node ports on ${nodePortAddresses.map(formatCidr)}`,
    `pods in ${podNets.map(formatCidr)}`,
  ].join("\n");
}

export function frontendText(frontend: ServiceFrontend): string {
  const { address, family, protocol, port, scope, title, backends, outside, masqueradeOutside } = frontend;
  const { sources, affinitySeconds } = frontend;
  return `${scope} ${address === undefined ? `node${family}` : formatAddress(address)} ${protocol}/${port} ${title}: ` +
    listText(backends) + (outside === undefined ? "" : ` outside ${listText(outside)}`) +
    (masqueradeOutside ? " masquerade" : "") + (sources === undefined ? "" : ` from [${sources.map(formatCidr)}]`) +
    (affinitySeconds === undefined ? "" : ` stays ${affinitySeconds}`);
}

const listText = ({ backends, empty }: BackendList): string =>
  (backends.every(({ draining }) => draining) ? `${empty} ` : "") +
  `(${backends.map((one) => `${formatAddress(one.address)}:${one.port}${one.draining ? "~" : ""}`).join(" ")})`;
