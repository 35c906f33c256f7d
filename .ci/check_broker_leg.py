"""Did the tests of a JUnit report really run against the broker that they were meant for?

    check_broker_leg.py REPORT SOURCE VERSION TESTS

Fails unless at least TESTS tests passed against a broker from SOURCE (testcontainers, node) whose version starts
with VERSION, and none was skipped for want of a broker.
"""

from __future__ import annotations

import sys
from xml.etree import ElementTree


def main(report: str, source: str, version: str, tests: str) -> int:
    """Return the exit code."""
    passed = 0
    skipped = []
    for case in ElementTree.parse(report).iter("testcase"):
        reason = case.find("skipped")
        if reason is not None and "broker" in (reason.get("message", "") + (reason.text or "")).lower():
            skipped.append(f"{case.get('classname')}.{case.get('name')}")
        brokers = [each.get("value", "") for each in case.iter("property") if each.get("name") == "broker"]
        outcomes = {child.tag for child in case} & {"skipped", "failure", "error"}
        passed += not outcomes and any(each.startswith(f"{source} {version}") for each in brokers)
    sys.stdout.write(f"{passed} tests passed against {source} {version}, {len(skipped)} skipped for want of a broker\n")
    for name in skipped:
        sys.stdout.write(f"skipped: {name}\n")
    return int(bool(skipped) or passed < int(tests))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:5]))
