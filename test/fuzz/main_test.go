package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Would catch a slow machine that passes for a finding, and a finding or a failing seed that passes for a slow machine.
func TestFindings(t *testing.T) {
	t.Parallel()
	const slow = "echo '--- FAIL: FuzzX (10.01s)'; echo '    context deadline exceeded'; exit 1"
	for name, test := range map[string]struct {
		script string // what the binary does; the file runs has a line for each time
		runs   int
		want   error
	}{
		"good":                  {"true", 1, nil},
		"slow once":             {"[ $(wc -l <runs) = 2 ] || { " + slow + "; }", 2, nil},
		"slow each time":        {slow, 2, errSlow},
		"a finding":             {"mkdir -p testdata/fuzz/FuzzX; touch testdata/fuzz/FuzzX/1; exit 1", 1, errFound},
		"a finding after all":   {"[ $(wc -l <runs) = 2 ] || { " + slow + "; }; mkdir -p testdata/fuzz/FuzzX; touch testdata/fuzz/FuzzX/1; exit 1", 2, errFound},
		"a finding of another":  {"mkdir -p testdata/fuzz/FuzzY; touch testdata/fuzz/FuzzY/1; " + slow, 2, errSlow},
		"a seed that fails":     {"echo 'failure while testing seed corpus entry: FuzzX/seed#1'; exit 1", 1, errFound},
		"an input that is kept": {"echo 'Failing input written to testdata/fuzz/FuzzX/1'; exit 1", 1, errFound},
	} {
		t.Run(name, func(t *testing.T) { // one after the other: a script that is written while another starts cannot be run
			dir := t.TempDir()
			x := target{pkg: "x", dir: dir, binary: filepath.Join(dir, "x.test"), name: "FuzzX"}
			script := "#!/bin/sh\necho >>runs\n" + test.script + "\necho 'fuzz: elapsed: 10s, execs: 500 (0/sec), new interesting: 1 (total: 2)'\n"
			if err := os.WriteFile(x.binary, []byte(script), 0o700); err != nil { //nolint:gosec // it is run
				t.Fatal(err)
			}
			text, err := x.fuzz(t.Context(), 10*time.Second, dir)
			if !errors.Is(err, test.want) || test.want == nil && !strings.Contains(text, "(50/s)") {
				t.Errorf("%q: %v", text, err)
			}
			if runs, err := os.ReadFile(filepath.Join(dir, "runs")); err != nil || len(runs) != test.runs {
				t.Errorf("%d runs: %v", len(runs), err)
			}
		})
	}
}
