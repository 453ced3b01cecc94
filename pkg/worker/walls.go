package worker

import "os"

func buildWalls(dir *os.File) Walls { return Walls{} }
