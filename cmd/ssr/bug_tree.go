package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ssr-go/ssr/rollout/selfplay"
	"github.com/ssr-go/ssr/sandbox/harvest"
)

type bugSolverTreeCmd struct {
	Repo        string `required:"" type:"existingdir" help:"The original repository."`
	Artifact    string `required:"" type:"existingdir" help:"The artifact's or bug's folder."`
	Out         string `required:"" type:"path" help:"The folder to write; it must not exist or be empty."`
	SecondOrder string `type:"existingfile" help:"The failed patch that a second-order bug has on top; by default failed.diff of the folder, if it is there."`
}

// Run copies the tree as a sandbox's workspace is copied, so that content,
// modes and times are what a solver sees.
func (c *bugSolverTreeCmd) Run(ctx context.Context) (err error) {
	a, err := selfplay.LoadArtifact(c.Artifact)
	if err != nil {
		return err
	}
	failed, err := c.failed()
	if err != nil {
		return err
	}
	if list, err := os.ReadDir(c.Out); err == nil && len(list) > 0 {
		return fmt.Errorf("%s is not empty; give a new folder", c.Out)
	}
	repo, err := selfplay.OpenRepo(ctx, c.Repo)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, repo.Close()) }()
	tree, err := repo.SolverTree(ctx, a, failed)
	if err != nil {
		return fmt.Errorf("the artifact in %s and the repository %s: %w", c.Artifact, c.Repo, err)
	}
	defer tree.Release()
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return err
	}
	_, err = harvest.Copy(tree.Dir, c.Out, harvest.Keep)
	return err
}

func (c *bugSolverTreeCmd) failed() ([]byte, error) {
	if c.SecondOrder != "" {
		return os.ReadFile(c.SecondOrder)
	}
	patch, err := os.ReadFile(filepath.Join(c.Artifact, selfplay.FailedPatchName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return patch, err
}
