# Worker pools of processes and threads.
import concurrent.futures, multiprocessing
def square(n): return n * n
if __name__ == "__main__":
    with multiprocessing.Pool(16) as pool: print(sum(pool.map(square, range(1000))))
    with concurrent.futures.ThreadPoolExecutor(32) as pool: print(sum(pool.map(square, range(1000))))
    for _ in range(3):
        with concurrent.futures.ProcessPoolExecutor(8) as pool: print(sum(pool.map(square, range(50))))
