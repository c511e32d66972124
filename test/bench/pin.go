package main

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
)

// split is one processor, and the others: the same one where there is but one.
func split() (one, others []int) {
	one = []int{runtime.NumCPU() - 1}
	for i := range max(1, runtime.NumCPU()-1) {
		others = append(others, i)
	}
	return one, others
}

// pin has all threads of a process run on these processors, and those that they will start.
func pin(ctx context.Context, pid int, processors []int) error {
	var list []string
	for _, p := range processors {
		list = append(list, strconv.Itoa(p))
	}
	text, err := exec.CommandContext(ctx, "taskset", "--all-tasks", "--cpu-list", "--pid", strings.Join(list, ","), strconv.Itoa(pid)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("taskset: %w: %s", err, text)
	}
	return nil
}
